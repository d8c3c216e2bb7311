"""What the door's classes take and give; a line marked ``E:`` has to be refused with that code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

from clipretrieval import (
    AuditReport,
    CascadeClassifier,
    EvaluationReport,
    Explanation,
    FitReport,
    ForgetReport,
    FunctionEncoder,
    Metric,
    Neighbors,
    Records,
    RetrievalClassifier,
    StagedEncoder,
    SweepResult,
    ZeroShotClassifier,
    audit,
)
from clipretrieval.auditing import AppliedDecisions, Decisions, Finding, ImageDecision, apply_decisions
from clipretrieval.cascade import Calibration, CascadeExplanation, CascadeReport, ExitFigures
from clipretrieval.evaluation import UnknownFigures
from clipretrieval.images import read_tars
from clipretrieval.trust import CalibrationReport, ConformalReport, PredictionSets
from clipretrieval.types import AnyArray, FloatArray

encoder = StagedEncoder("RN50", pretrained=None, stage="mid")
assert_type(encoder.dim, int)
assert_type(encoder.encode("pictures"), FloatArray)
assert_type(encoder.encode_stages("pictures", ["mid", "late"]), dict[str, FloatArray])
StagedEncoder(stage=3)  # E: arg-type
StagedEncoder(stages="mid")  # E: call-arg
print(encoder.dimension)  # E: attr-defined

classifier = RetrievalClassifier(encoder, "faiss", k=3, weights="distance", metric=Metric.COSINE)
assert_type(classifier.fit("pictures", resume=True), RetrievalClassifier)
assert_type(classifier.fit(read_tars("t-{000..012}.tar", label="txt")), RetrievalClassifier)
assert_type(classifier.partial_fit("pictures", ["a"]), RetrievalClassifier)
assert_type(classifier.fit_vectors("parts/*.parquet", encoder=encoder), RetrievalClassifier)
assert_type(classifier.partial_fit_vectors(np.eye(2), [0, 1], ["x", "y"]), RetrievalClassifier)
assert_type(classifier.export("animals.parquet"), int)
assert_type(RetrievalClassifier.from_vectors("faiss", "v.npz", encoder=encoder, k=3), RetrievalClassifier)
RetrievalClassifier.adopt_store("faiss", encoder)  # E: arg-type
assert_type(classifier.predict("pictures"), AnyArray)
assert_type(classifier.predict_proba("pictures"), AnyArray)
assert_type(classifier.predict_proba("pictures", sparse=False), AnyArray)
assert_type(classifier.predict_proba("pictures", sparse=True), Any)
classifier.predict_proba("pictures", sparse="csr")  # E: call-overload
assert_type(classifier.kneighbors("pictures", 5), Neighbors)
assert_type(classifier.calibrate("pictures", method="isotonic"), RetrievalClassifier)
assert_type(classifier.conformalize("pictures", ["a"], score="raps"), RetrievalClassifier)
assert_type(classifier.predict_set("pictures", 0.9), PredictionSets)
assert_type(classifier.predict_set("pictures").sets, npt.NDArray[np.bool_])
assert_type(classifier.score_samples("pictures"), AnyArray)
assert_type(classifier.calibration_, CalibrationReport | None)
assert_type(classifier.conformal_, ConformalReport | None)
assert_type(classifier.evaluate("pictures", unknown_images="others").unknown, UnknownFigures | None)
classifier.predict_set("pictures", "0.9")  # E: arg-type
classifier.conformalize("pictures", scores="lac")  # E: call-arg
assert_type(classifier.explain("pictures"), list[Explanation])
assert_type(classifier.evaluate("pictures"), EvaluationReport)
assert_type(classifier.sweep("pictures", k=[1, 5]), SweepResult)
assert_type(classifier.forget(label="a"), ForgetReport)
assert_type(classifier.fit_report_, FitReport)
assert_type(classifier.store_.get(["a"]), Records)
assert_type(RetrievalClassifier.load("folder"), RetrievalClassifier)
assert_type(RetrievalClassifier.load("folder", allow_remote=True), RetrievalClassifier)
RetrievalClassifier().save("folder", overwrite=True)
RetrievalClassifier(encoder, "faiss", 3)  # E: call-arg
RetrievalClassifier(encoder, k="3")  # E: arg-type
RetrievalClassifier(encoder, store=3)  # E: arg-type
classifier.fit("pictures", overwrites=True)  # E: call-arg
classifier.kneighbors("pictures", "five")  # E: arg-type
print(classifier.evaluate("pictures").acuracy)  # E: attr-defined

cascade = CascadeClassifier(encoder, ("layer1", "late"), head="votes", store="faiss", certainty="margin")
assert_type(cascade.fit("pictures", resume=True), CascadeClassifier)
assert_type(cascade.partial_fit("pictures", ["a"]), CascadeClassifier)
assert_type(cascade.calibrate("pictures", max_loss=0.01), CascadeClassifier)
assert_type(cascade.calibration_, Calibration | None)
assert_type(cascade.exits_, tuple[RetrievalClassifier, ...])
assert_type(cascade.predict("pictures"), AnyArray)
assert_type(cascade.explain("pictures"), list[CascadeExplanation])
assert_type(cascade.explain("pictures", on_error="skip"), list[CascadeExplanation | None])
assert_type(cascade.explain("pictures")[0].stage, str)
assert_type(cascade.evaluate("pictures"), CascadeReport)
assert_type(cascade.evaluate("pictures").exits, tuple[ExitFigures, ...])
assert_type(cascade.forget(label="a"), ForgetReport)
assert_type(CascadeClassifier.load("folder"), CascadeClassifier)
assert_type(CascadeClassifier.from_stores("faiss", encoder), CascadeClassifier)
CascadeClassifier()  # E: call-arg
CascadeClassifier(encoder, stages=3)  # E: arg-type
CascadeClassifier(encoder, ("layer1", "late"), "votes")  # E: call-arg
cascade.calibrate("pictures", max_los=0.01)  # E: call-arg
print(cascade.evaluate("pictures").exit)  # E: attr-defined

zero_shot = ZeroShotClassifier(encoder, ["cat", "dog"], templates="a photo of a {}.")
assert_type(zero_shot.predict("pictures"), AnyArray)
assert_type(zero_shot.evaluate("pictures"), EvaluationReport)
ZeroShotClassifier(encoder, 10)  # E: arg-type

assert_type(classifier.search_text("a red cup", 5), Neighbors)
assert_type(cascade.search_text(["a cup", "a cat"], templates="a photo of a {}."), Neighbors)
classifier.search_text("a red cup", "five")  # E: arg-type

own = FunctionEncoder(lambda images: [[float(image.width)] for image in images], name="width", version=1)
assert_type(own.encode("pictures"), FloatArray)
assert_type(own.set_params(version=2), FunctionEncoder)
assert_type(encoder.fit("pictures").set_output(transform="pandas"), StagedEncoder)
RetrievalClassifier(own).fit("pictures")
FunctionEncoder(lambda images: images)  # E: call-arg
FunctionEncoder("width", name="width", version=1)  # E: arg-type

near = classifier.kneighbors("pictures")
assert_type(near.distances, FloatArray)
near.distances = near.distances  # E: misc

assert_type(audit(classifier, X_test="pictures", parts=["label"]), AuditReport)
assert_type(audit("pictures", encoder=encoder, output="audited").of("label"), tuple[Finding, ...])
assert_type(AuditReport.from_json("audit.json").groups("leak"), list[tuple[Finding, ...]])
audit(classifier, limit="all")  # E: arg-type
decided = Decisions({}, (ImageDecision("forget", "id"),))
assert_type(audit(classifier, decisions=[decided, "decisions.json"]).kept, Mapping[str, int])
audit(classifier, decisions=5)  # E: arg-type
assert_type(apply_decisions(classifier, decided, folder="pictures"), AppliedDecisions)
assert_type(
    apply_decisions(None, "decisions.json", "pictures").skipped, tuple[tuple[ImageDecision, str], ...]
)
apply_decisions("kept", decided)  # E: arg-type
