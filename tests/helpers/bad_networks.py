"""Networks and scorers that fail in one way each, named as `bad_networks:function` in jobs."""

import torch

import smoke


class AllNan(smoke.Tiny):
    def forward(self, x):
        return super().forward(x) * torch.nan


class Raises(smoke.Tiny):
    fault: BaseException | None = RuntimeError("shapes cannot be multiplied")

    def forward(self, x):
        if len(x) > 2 and Raises.fault:  # not on the two faces that every network is tried with
            raise Raises.fault
        return super().forward(x)


def all_nan(weights=None):
    return AllNan()


def raises(weights=None):
    return Raises()


def raises_at_once(weights=None):
    raise KeyError("layer9")


def score_nan(weights=None):
    return lambda faces: torch.full((len(faces),), torch.nan)


def score_matrix(weights=None):
    return lambda faces: torch.zeros(len(faces), 2)


def score_raises(weights=None):
    return lambda faces: faces.no_such_thing
