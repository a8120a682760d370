"""Lists the words of PaddleClas's configs that are not supported here, and alternatives."""

from __future__ import annotations

from typing import Any

_CROP = "RandCropImage, which crops as the ImageNet recipes do"
_ONE_LABEL = "training uses one label per sample"
_RETRIEVAL = "this package trains classifiers, not retrieval or face recognition"
_REMOVE_KEY = "remove the key"
_DISTILLATION = "CELoss; distillation is not supported"
_SEMI_SUPERVISED = "semi-supervised training is not supported; train on labelled images"
_NO_SWITCH = "Global.device: the device's name, such as gpu or cpu"

# Alternatives by key or component name. Words that this package supports under the same name are not listed.
ALTERNATIVES = {
    # Global, AMP, Arch
    "use_dali": f"threads decode the images, as fast as the cores allow; {_REMOVE_KEY}",
    "use_multilabel": f"{_ONE_LABEL}; {_REMOVE_KEY}",
    "use_pure_fp16": "AMP.level: O2",
    "use_fp16": "AMP.use_amp",
    **dict.fromkeys(("use_gpu", "use_xpu", "use_npu", "use_mlu", "use_gcu"), _NO_SWITCH),
    "log_ranks": f"the first process logs, and --log_dir of ppxcls launch keeps all output; {_REMOVE_KEY}",
    "class_num": "Arch.class_num",
    "iter_per_epoch": _SEMI_SUPERVISED,
    "uniform_output_enabled": f"results are in metrics.jsonl, eval.json and report.html; {_REMOVE_KEY}",
    "export_for_fd": "ppxcls export, whose inference_config.json describes the files",
    "export_with_pir": f"ppxcls export, which writes the format of the installed Paddle; {_REMOVE_KEY}",
    "use_ssld": "Arch.pretrained: True, because distilled weights were not published for any Xception",
    "use_ml_decoder": f"{_ONE_LABEL}; {_REMOVE_KEY}",
    "DistillationModel": "one of the networks of 'ppxcls list'; distillation is not supported",
    "RecModel": f"one of the networks of 'ppxcls list'; {_RETRIEVAL}",
    # Infer
    "infer_list": "Infer.infer_imgs, or files as arguments: ppxcls infer -c RUN IMAGES",
    "save_dir": "ppxcls infer --output FILE",
    "threshold": "the scores of ppxcls infer --format csv, which can be filtered",
    "delimiter": f"names are read with a blank, a tab or a comma after the id; {_REMOVE_KEY}",
    "relabel": f"labels are used unchanged; {_REMOVE_KEY}",
    "use_log_aspect": f"the ratio of the crop is uniform; {_REMOVE_KEY}",
    "infer_add_softmax": "ppxcls export, with --logits for none",
    "retrieval_feature_from": _RETRIEVAL,
    "re_ranking": _RETRIEVAL,
    "feature_normalize": _RETRIEVAL,
    "Gallery": _RETRIEVAL,
    "Query": _RETRIEVAL,
    "Distillation": "train one network; distillation is not supported",
    "input_image_channel": "Arch.in_channels, and channels of DecodeImage",
    "infer_model_name": _REMOVE_KEY,
    "Slim": "export with ppxcls export, and quantise or prune the ONNX file with a tool for it",
    "DataAugmentation": "transform_ops of the data set",
    "UnLabelTrain": _SEMI_SUPERVISED,
    # Data sets and samplers
    "MultiLabelDataset": f"ImageNetDataset; {_ONE_LABEL}",
    "ImageNetLTDataset": "ImageNetDataset with the sampler ClassBalancedSampler",
    "CustomLabelDataset": "ImageNetDataset with a list of labelled images",
    "MultiScaleDataset": "ImageNetDataset with the sampler ProgressiveSampler",
    "Cifar10": "ppxcls lists on a folder of images, and ImageNetDataset",
    "Cifar100": "ppxcls lists on a folder of images, and ImageNetDataset",
    "MNIST": "ppxcls lists on a folder of images, and ImageNetDataset",
    "CommonDataset": "ImageNetDataset",
    "MixDataset": "one list with the lines of all lists",
    "VeriWild": _RETRIEVAL,
    "LogoDataset": _RETRIEVAL,
    "ICartoonDataset": _RETRIEVAL,
    "CompCars": _RETRIEVAL,
    "VehicleID": _RETRIEVAL,
    "PKDataset": _RETRIEVAL,
    "Market1501": _RETRIEVAL,
    "MSMT17": _RETRIEVAL,
    "DukeMTMC": _RETRIEVAL,
    "AttrDataset": f"ImageNetDataset; {_ONE_LABEL}",
    "GeneralDataset": "ImageNetDataset",
    "AdaFaceDataset": _RETRIEVAL,
    "FiveValidationDataset": _RETRIEVAL,
    "MultiScaleSampler": "ProgressiveSampler, whose images grow during training",
    "BatchSampler": "DistributedBatchSampler",
    "DistributedRandomIdentitySampler": _RETRIEVAL,
    "PKSampler": _RETRIEVAL,
    **dict.fromkeys(
        (
            "DomainShuffleSampler",
            "DomainShuffleBatchSampler",
            "NaiveIdentitySampler",
            "NaiveIdentityBatchSampler",
        ),
        _RETRIEVAL,
    ),
    "MixSampler": "one list with the lines of all lists, or ClassBalancedSampler",
    # Transforms
    "RandCropImageV2": _CROP,
    "RandomCropImage": _CROP,
    "RandomResizedCrop": _CROP,
    "DecodeRandomResizedCrop": f"DecodeImage and {_CROP}",
    "CropMirrorNormalize": "CropImage, RandFlipImage and NormalizeImage",
    "RandomHorizontalFlip": "RandFlipImage",
    "RandomRot90": "RandFlipImage with flip_code: -1, or RandomRotation",
    "Pad_paddle_vision": "Pad",
    "RandomInterpolationAugment": "RandCropImage with one interpolation",
    "AugMix": "RandAugment, TrivialAugment or TimmAutoAugment",
    "CropImageAtRatio": "ResizeImage with resize_short, and CropImage",
    "RandAugmentV2": "RandAugment or TimmAutoAugment",
    "RandAugmentV3": "RandAugment or TimmAutoAugment",
    "RandAugmentV4": "RandAugment or TimmAutoAugment",
    "RandomApply": "the key prob or p of a transform, or TrivialAugment, which chooses at random",
    "CropWithPadding": "ResizeImage with keep_ratio, or CropImage and Padv2",
    "Normalize": "NormalizeImage",
    "ToTensor": "NormalizeImage",
    "PCALighting": "ColorJitter",
    # Mixing
    "FmixOperator": "CutmixOperator",
    "MixupCutmixHybrid": "OpSampler with MixupOperator and CutmixOperator",
    # Losses and metrics
    "MixCELoss": "CELoss, which takes mixed labels too",
    "MultiLabelLoss": f"BCELoss; {_ONE_LABEL}",
    "MultiLabelAsymmetricLoss": f"BCELoss or FocalLoss; {_ONE_LABEL}",
    **dict.fromkeys(
        (
            "DistillationCELoss",
            "DistillationGTCELoss",
            "DistillationDISTLoss",
            "DistillationDMLLoss",
            "DistillationDistanceLoss",
            "DistillationKLDivLoss",
            "DistillationDKDLoss",
            "DistillationMultiLabelLoss",
            "DistillationPairLoss",
            "DistillationRKDLoss",
            "DistillationSKDLoss",
            "DistillationWSLLoss",
            "AFDLoss",
            "PEFDLoss",
            "DMLLoss",
            "KLDivLoss",
            "DistanceLoss",
        ),
        _DISTILLATION,
    ),
    **dict.fromkeys(
        (
            "TripletLossV2",
            "MSMLoss",
            "EmlLoss",
            "NpairsLoss",
            "TriHardLoss",
            "SupConLoss",
            "ContrastiveLoss",
            "ContrastiveLoss_XBM",
            "TripletAngularMarginLoss",
            "TripletAngularMarginLoss_XBM",
            "PairwiseCosface",
            "DSHSDLoss",
            "LCDSHLoss",
            "DCHLoss",
            "CELossForMetaBIN",
            "TripletLossForMetaBIN",
            "InterDomainShuffleLoss",
            "IntraDomainScatterLoss",
        ),
        _RETRIEVAL,
    ),
    **dict.fromkeys(("UnLabelLoss", "CCSSLCELoss", "SoftSupConLoss"), _SEMI_SUPERVISED),
    "reduction": "the mean over the samples, which is the only reduction",
    "GoogLeNetLoss": "CELoss; the networks have one output",
    "GoogLeNetTopkAcc": "TopkAcc; the networks have one output",
    "DistillationTopkAcc": "TopkAcc; distillation is not supported",
    "MultiLabelMAP": f"TopkAcc or ClassReport; {_ONE_LABEL}",
    "TripletLoss": _RETRIEVAL,
    "CenterLoss": _RETRIEVAL,
    "Recallk": _RETRIEVAL,
    "mAP": _RETRIEVAL,
    "mINP": _RETRIEVAL,
    "Precisionk": _RETRIEVAL,
    "MultilabelMeanAccuracy": f"TopkAcc or ClassReport; {_ONE_LABEL}",
    "HammingDistance": f"TopkAcc or ClassReport; {_ONE_LABEL}",
    "AccuracyScore": "TopkAcc or ClassReport",
    "ATTRMetric": f"ClassReport; {_ONE_LABEL}",
    # Schedules and optimizers
    "last_epoch": "Global.checkpoints, which resumes a run at its epoch",
    "CosineFixmatch": "Cosine",
    "Constant": "ConstLR",
    "ReduceOnPlateauV2": "ReduceOnPlateau",
    "AdamWDL": "AdamW with layer_decay",
    "LarsMomentum": "Momentum or Lamb",
}

_SECTION_KEYS = ("class_num",)  # keys of PaddleClas in sections, but not in components
_OFF: tuple[Any, ...] = (None, False, "", [], {})
# Values with which a key of PaddleClas asks for what happens here anyway. Such a key is accepted. Any other
# value of a key above is an error, also if it is false.
HARMLESS_VALUES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "use_dali",
            "use_multilabel",
            "use_pure_fp16",
            "relabel",
            "use_log_aspect",
            "retrieval_feature_from",
            "re_ranking",
            "feature_normalize",
            "Gallery",
            "Query",
            "Distillation",
            "Slim",
            "DataAugmentation",
            "UnLabelTrain",
            "UnLabelLoss",
            "uniform_output_enabled",
            "export_for_fd",
            "export_with_pir",
            "use_ssld",
            "use_ml_decoder",
            "infer_list",
            "infer_model_name",
            "save_dir",
        ),
        _OFF,
    ),
    "infer_add_softmax": (True,),
    "input_image_channel": (3, None),
    "log_ranks": ("0", 0, None),
    "reduction": ("mean",),
    "last_epoch": (-1,),
    "iter_per_epoch": (None,),
    "threshold": (None,),
}


def is_harmless(word: object, value: Any) -> bool:
    """True if a key of PaddleClas has a value that asks for what happens here anyway."""
    values = HARMLESS_VALUES.get(str(word), ())
    return any(type(value) is type(harmless) and value == harmless for harmless in values)


def unsupported_message(word: object, *, in_section: bool = True) -> str | None:
    """Returns the message for a word of PaddleClas that is not supported here; None for any other word.

    Args:
        word: key or name.
        in_section: True for a key of a section or a name; False for an argument of a component.
    """
    alternative = ALTERNATIVES.get(str(word))
    if alternative is None or (str(word) in _SECTION_KEYS and not in_section):
        return None
    return f"{word!r} of PaddleClas is not supported here; instead: {alternative}"
