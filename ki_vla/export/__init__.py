"""Export a bundle to ONNX and TensorRT, each graph checked against torch. Start with `write.export_onnx`."""
