"""The built-in heads and one of a user's own pass the contract; heads made wrong on purpose do not."""

from __future__ import annotations

from nearest_mean import NearestMean

from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.heads.fused import Fused
from clipretrieval.heads.quadratic import Quadratic
from clipretrieval.heads.ridge import Ridge
from clipretrieval.testing import HeadContract


class TestNearestMean(HeadContract):
    def make_head(self):
        return NearestMean()


class TestDiscriminant(HeadContract):
    def make_head(self):
        return Discriminant()


class TestValidatedDiscriminant(HeadContract):
    def make_head(self):
        return Discriminant("validated")


class TestSphericalDiscriminant(HeadContract):
    def make_head(self):
        return Discriminant(1.0)


class TestQuadratic(HeadContract):
    def make_head(self):
        return Quadratic()


class TestRidge(HeadContract):
    def make_head(self):
        return Ridge(64)


class TestFixedRidge(HeadContract):
    def make_head(self):
        return Ridge(64, penalty=0.01)


class TestFused(HeadContract):
    def make_head(self):
        return Fused(5, ridge=Ridge(64))
