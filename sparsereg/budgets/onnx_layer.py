"""One layer, alone, in onnxruntime."""

from collections.abc import Callable

from torch import Tensor, nn


def onnx_runner(layer: nn.Module, images: Tensor, copies: int, threads: int) -> Callable:
    """A layer and its ReLU in onnxruntime, so many times side by side."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    is_conv = isinstance(layer, nn.Conv2d)
    nodes, weights = [], []
    for copy in map(str, range(copies)):
        for name, tensor in layer.state_dict().items():
            weights.append(numpy_helper.from_array(tensor.contiguous().numpy(), name + copy))
        names = ["images", "weight" + copy, "bias" + copy]
        options = conv_options(layer) if is_conv else {"transB": 1}
        nodes.append(
            helper.make_node("Conv" if is_conv else "Gemm", names, ["y" + copy], **options)
        )
        nodes.append(helper.make_node("Relu", ["y" + copy], ["out" + copy]))
    real = TensorProto.FLOAT
    outputs = [helper.make_tensor_value_info(f"out{c}", real, None) for c in range(copies)]
    inputs = [helper.make_tensor_value_info("images", real, list(images.shape))]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.enable_cpu_mem_arena = False
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=providers)
    binding = session.io_binding()
    binding.bind_cpu_input("images", images.numpy())
    for output in outputs:
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def conv_options(conv: nn.Conv2d) -> dict:
    options = {"strides": conv.stride, "dilations": conv.dilation, "group": conv.groups}
    if isinstance(conv.padding, str):
        return options | {"auto_pad": "SAME_UPPER" if conv.padding == "same" else "VALID"}
    return options | {"pads": [*conv.padding, *conv.padding]}
