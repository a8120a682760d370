"""Operators for training on the CPU, with the parameters and state keys of Paddle's layers.

GPUs and other devices use Paddle's own operators. A network imports its layers from here.
``ppxcls.ops.in_order.in_order`` computes several of them as one operator.
"""

from ppxcls.ops.batch_norm import BatchNorm2D as BatchNorm2D
from ppxcls.ops.batch_norm import NormReLU as NormReLU
from ppxcls.ops.batch_norm import ReLU as ReLU
from ppxcls.ops.batch_norm import relu as relu
from ppxcls.ops.convolution import DenseConv2D as DenseConv2D
from ppxcls.ops.depthwise import DepthwiseConv2D as DepthwiseConv2D
from ppxcls.ops.in_order import Stack as Stack
from ppxcls.ops.max_pool import MaxPool2D as MaxPool2D
from ppxcls.ops.pointwise import PointwiseConv2D as PointwiseConv2D
