"""From a bundle to graphs that other runtimes take, each proved against torch. Start with `write.export_onnx`."""
