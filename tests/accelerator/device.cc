// An accelerator without hardware, for tests: a plugin for Paddle's custom-device interface, through which
// vendors' chips are reached. It has memory, streams and collectives of its own, and computes with Paddle's
// kernels for the CPU. See runtime.h, collectives.h, kernels.h and registration.h.
//
// tests/accelerator/build.py compiles it. By hand, with P for the folder of the paddle package:
//
//   g++ -std=c++17 -O1 -w -fPIC -shared -pthread -DPADDLE_WITH_CUSTOM_DEVICE -I $P/include
//     -I $P/include/third_party device.cc -L $P/libs -lphi_core -lcommon -o FOLDER/libaccelerator.so
//   CUSTOM_DEVICE_ROOT=FOLDER python -c "import paddle; print(paddle.device.get_available_custom_device())"
//
// Environment:
//   ACCELERATOR_NAME=iluvatar_gpu  the device's name. Paddle allows bfloat16 AMP by name: iluvatar_gpu, npu,
//                                  metax_gpu and intel_hpu have it, and test_chip does not
//   ACCELERATOR_DEVICES=2          number of devices
//   ACCELERATOR_MEMORY_MB=8192     memory of each device
//   ACCELERATOR_DELAY_US=0         how late a queued copy is due, see streams.h
//   FLAGS_free_idle_chunk=1 FLAGS_auto_growth_chunk_size_in_mb=0
//                                  Paddle's own: it gives memory back at once, and the device poisons it
//   FLAGS_enable_api_kernel_fallback=0
//                                  Paddle's own: an operator without a kernel is an error. Otherwise it runs
//                                  on the CPU, with copies both ways
//
// Python reads the counts with ctypes, from the same library in the same process: device_counts fills eight
// int64, the members of Counts in counts.h.
#include "collectives.h"
#include "registration.h"

extern "C" void InitPlugin(CustomRuntimeParams* parameters) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(parameters);
  parameters->device_type = const_cast<char*>(accelerator::device_name().c_str());
  parameters->sub_device_type = const_cast<char*>("v1");
  C_DeviceInterface* table = parameters->interface;
  memset(static_cast<void*>(table), 0, sizeof(*table));
  table->size = sizeof(*table);
  accelerator::fill_device_calls(table);
  accelerator::fill_collective_calls(table);
  accelerator::add_kernels();
}

extern "C" void device_counts(int64_t* values) {
  for (auto* count : accelerator::counts.all()) *values++ = *count;
}

extern "C" void device_reset_counts() {
  for (auto* count : accelerator::counts.all()) *count = 0;
}

extern "C" void device_set_delay(long microseconds) { accelerator::copy_delay_us = microseconds; }
