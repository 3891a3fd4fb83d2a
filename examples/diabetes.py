"""A task of one's own, for diabetes.yaml: how far diabetes goes in a year, from ten measurements of a patient.

The 442 patients come with scikit-learn (Efron, Hastie, Johnstone and Tibshirani, Least Angle Regression, 2004).
"""

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import TensorDataset


class Diabetes:
    """Regression by a network with one hidden layer."""

    def __init__(self, params):
        self.params = params

    def build_model(self):
        width = self.params["width"]
        return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Dropout(self.params["dropout"]), nn.Linear(width, 1))

    def datasets(self):
        patients = load_diabetes()
        inputs = torch.tensor(patients.data / patients.data.std(axis=0), dtype=torch.float32)
        targets = torch.tensor((patients.target - 152) / 77, dtype=torch.float32)  # its mean and deviation
        order = np.random.default_rng(0).permutation(len(targets))
        return TensorDataset(inputs[order[88:]], targets[order[88:]]), TensorDataset(
            inputs[order[:88]], targets[order[:88]]
        )

    def loss(self, model, batch):
        output = model(batch["inputs"]).squeeze(1)
        return nn.functional.mse_loss(output, batch["targets"], reduction="sum"), len(output)
