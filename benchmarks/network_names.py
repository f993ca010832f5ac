"""The networks of docs/networks.md, and the size of the images that they get there."""

from benchmarks.cifar_literature import LITERATURE
from benchmarks.hugging_face import SETTINGS
from sparsereg.model.small_images import NETWORKS

TORCHVISION = (
    *("alexnet", "vgg11", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d"),
    *("wide_resnet50_2", "densenet121", "densenet169", "googlenet", "inception_v3"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"),
    *("efficientnet_v2_s", "mnasnet0_5", "regnet_x_400mf", "regnet_y_400mf"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "convnext_tiny", "vit_b_32", "swin_t"),
    "maxvit_t",
)
TIMM = (
    *("resnet26d", "resnext26ts", "ecaresnet26t", "skresnet18", "res2net50_48w_2s"),
    *("resnest14d", "darknet17", "cspresnet50", "dla46_c", "dpn68", "ese_vovnet19b_slim"),
    *("hrnet_w18_small", "efficientnet_lite0", "tf_efficientnetv2_b0", "mixnet_s"),
    *("fbnetc_100", "mobilenetv1_100", "mobilenetv4_conv_small", "mobileone_s0"),
    *("ghostnet_050", "rexnet_100", "nf_regnet_b0", "convnext_atto", "convmixer_768_32"),
    *("fastvit_t8", "repghostnet_050", "inception_v4", "xception41", "selecsls42"),
    *("dm_nfnet_f0", "poolformer_s12", "mobilevit_xxs", "levit_128s", "coatnet_pico_rw_224"),
    *("regnety_002", "convnextv2_atto", "resnet50_gn"),
)
PYTORCHCV = (  # one of each kind that the other libraries do not have
    *("nin_cifar10", "preresnet20_cifar10", "resnext20_16x4d_cifar10", "sepreresnet20_cifar10"),
    *("pyramidnet110_a48_cifar10", "xdensenet40_2_k24_bc_cifar10", "wrn16_10_cifar10"),
    *("wrn20_10_1bit_cifar10", "ror3_56_cifar10", "rir_cifar10", "msdnet22_cifar10"),
    *("resdropresnet20_cifar10", "shakeshakeresnet20_2x16d_cifar10", "shakedropresnet20_cifar10"),
    *("fractalnet_cifar10", "diaresnet20_cifar10", "diapreresnet20_cifar10", "bninception"),
    *("ibn_resnet50", "ibnb_resnet50", "airnet50_1x64d_r2", "cbam_resnet18", "bam_resnet18"),
    *("resattnet56", "sknet50", "scnet50", "diracnet18v2", "sharesnet18", "condensenet74_c4_g4"),
    *("sparsenet121", "peleenet", "drnc26", "channelnet", "revnet38", "bagnet9", "fishnet99"),
    *("espnetv2_wd2", "dicenet_wd5", "hardnet39ds", "menet108_8x1_g3", "igcv3_w1", "darts"),
    *("nasnet_4a1056", "octresnet10_ad2", "fastseresnet101b", "isqrtcovresnet18", "tresnet_m"),
    *("sqnxt23_w1", "shufflenet_g1_w1", "proxylessnas_cpu", "spnasnet", "inceptionresnetv2"),
    *("polynet", "resneta10", "fdmobilenet_w1"),
)
NAMES = {
    "sparsereg": NETWORKS,
    "literature": LITERATURE,
    "torchvision": TORCHVISION,
    "timm": TIMM,
    "transformers": SETTINGS,
    "pytorchcv": PYTORCHCV,
}
EXTRA = ("transformers", "pytorchcv")  # that the project's own files do not install
SIZES = {  # of images; 64 for the others
    **dict.fromkeys(("vit_b_32", "maxvit_t", "levit_128s", "coatnet_pico_rw_224"), 224),
    **{"Levit": 224, "FocalNet": 32},
    **dict.fromkeys(("alexnet", "inception_v3", "inception_v4", "xception41"), 96),
}


def image_size(library: str, name: str) -> int:
    if library in ("sparsereg", "literature") or name.endswith("_cifar10"):
        return 32
    return 224 if library == "pytorchcv" else SIZES.get(name, 64)
