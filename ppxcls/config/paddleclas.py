"""Lists the words of PaddleClas's configs that are not supported here, and alternatives."""

from __future__ import annotations

_CROP = "RandCropImage, which crops as the ImageNet recipes do"
_ONE_LABEL = "training uses one label per sample"
_RETRIEVAL = "this package trains classifiers, not retrieval or face recognition"
_REMOVE_KEY = "remove the key"

# Alternatives by key or component name. Words that this package supports under the same name are not listed.
ALTERNATIVES = {
    # Global, AMP, Arch
    "use_dali": f"threads decode the images, as fast as the cores allow; {_REMOVE_KEY}",
    "use_multilabel": f"{_ONE_LABEL}; {_REMOVE_KEY}",
    "use_pure_fp16": "AMP.level: O2",
    "use_fp16": "AMP.use_amp",
    "use_gpu": "Global.device, which is gpu or cpu",
    "relabel": f"labels are used unchanged; {_REMOVE_KEY}",
    "use_log_aspect": f"the ratio of the crop is uniform; {_REMOVE_KEY}",
    "infer_add_softmax": "ppxcls export, with --logits for none",
    "retrieval_feature_from": _RETRIEVAL,
    "re_ranking": _RETRIEVAL,
    "feature_normalize": _RETRIEVAL,
    "Gallery": _RETRIEVAL,
    "Query": _RETRIEVAL,
    "Distillation": "train one network; distillation is not supported",
    "input_image_channel": f"the networks take 3 channels; {_REMOVE_KEY}",
    "infer_model_name": _REMOVE_KEY,
    "Slim": "export with ppxcls export, and quantise or prune the ONNX file with a tool for it",
    "DataAugmentation": "transform_ops of the data set",
    "UnLabelTrain": "semi-supervised training is not supported; train on labelled images",
    # Data sets and samplers
    "MultiLabelDataset": f"ImageNetDataset; {_ONE_LABEL}",
    "ImageNetLTDataset": "ImageNetDataset with the sampler ClassBalancedSampler",
    "CustomLabelDataset": "ImageNetDataset with a list of labelled images",
    "MultiScaleDataset": "ImageNetDataset with the sampler ProgressiveSampler",
    "Cifar10": "ppxcls lists on a folder of images, and ImageNetDataset",
    "Cifar100": "ppxcls lists on a folder of images, and ImageNetDataset",
    "MNIST": "ppxcls lists on a folder of images, and ImageNetDataset",
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
    "MixSampler": "one list with the lines of all lists, or ClassBalancedSampler",
    # Transforms
    "RandCropImageV2": _CROP,
    "RandomCropImage": _CROP,
    "RandomResizedCrop": _CROP,
    "DecodeRandomResizedCrop": f"DecodeImage and {_CROP}",
    "CropMirrorNormalize": "CropImage, RandFlipImage and NormalizeImage",
    "RandomHorizontalFlip": "RandFlipImage",
    "RandomRotation": "RandAugment or TrivialAugment, which rotate too",
    "RandomRot90": "RandFlipImage with flip_code: -1, or RandAugment",
    "RandomInterpolationAugment": "RandCropImage with one interpolation",
    "AugMix": "RandAugment, TrivialAugment or TimmAutoAugment",
    "CropWithPadding": "ResizeImage and CropImage",
    "Pad": "ResizeImage, which fills the whole size",
    "Padv2": "ResizeImage, which fills the whole size",
    "Normalize": "NormalizeImage",
    "ToTensor": "NormalizeImage",
    "PCALighting": "ColorJitter",
    "BlurImage": "TrivialAugment",
    # Mixing
    "FmixOperator": "CutmixOperator",
    "MixupCutmixHybrid": "OpSampler with MixupOperator and CutmixOperator",
    # Losses and metrics
    "MixCELoss": "CELoss, which takes mixed labels too",
    "MultiLabelLoss": f"BCELoss; {_ONE_LABEL}",
    **dict.fromkeys(
        (
            "DistillationCELoss",
            "DistillationGTCELoss",
            "DistillationDMLLoss",
            "DistillationKLDivLoss",
            "DistillationDKDLoss",
        ),
        "CELoss; distillation is not supported",
    ),
    **dict.fromkeys(("DMLLoss", "KLDivLoss", "DistanceLoss"), "CELoss; distillation is not supported"),
    **dict.fromkeys(
        ("TripletLossV2", "MSMLoss", "EmlLoss", "NpairsLoss", "TriHardLoss", "SupConLoss"), _RETRIEVAL
    ),
    "GoogLeNetLoss": "CELoss; the networks have one output",
    "GoogLeNetTopkAcc": "TopkAcc; the networks have one output",
    "DistillationTopkAcc": "TopkAcc; distillation is not supported",
    "MultiLabelMAP": f"TopkAcc or ClassReport; {_ONE_LABEL}",
    "TripletLoss": _RETRIEVAL,
    "CenterLoss": _RETRIEVAL,
    "Recallk": _RETRIEVAL,
    "mAP": _RETRIEVAL,
    "mINP": _RETRIEVAL,
    "HammingDistance": f"TopkAcc or ClassReport; {_ONE_LABEL}",
    "AccuracyScore": "TopkAcc or ClassReport",
    "ATTRMetric": f"ClassReport; {_ONE_LABEL}",
    # Schedules and optimizers
    "CosineFixmatch": "Cosine",
    "Constant": "ConstLR",
    "ReduceOnPlateauV2": "ReduceOnPlateau",
    "AdamWDL": "AdamW with layer_decay",
    "LarsMomentum": "Momentum or Lamb",
}


def unsupported_message(word: object) -> str | None:
    """Returns the message for a word of PaddleClas that is not supported here; None for any other word."""
    alternative = ALTERNATIVES.get(str(word))
    return (
        None
        if alternative is None
        else f"{word!r} of PaddleClas is not supported here; instead: {alternative}"
    )
