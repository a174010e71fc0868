"""Trained networks as files that other programs load: torch.export, ONNX, safetensors for smp or timm."""
