"""Networks, losses, metrics and augmentation: functions of tensors and arrays, without files."""
