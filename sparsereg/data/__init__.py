from sparsereg.data.cifar import Cifar
from sparsereg.data.digits import Digits
from sparsereg.data.image_folder import ImageFolder
from sparsereg.data.mnist import Mnist
from sparsereg.data.pipeline import ImageData, LabelledImages, Splits

__all__ = ["Cifar", "Digits", "ImageData", "ImageFolder", "LabelledImages", "Mnist", "Splits"]
