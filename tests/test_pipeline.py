"""The GPU's way of a batch, here with a processor in its place; marked ones run on a real GPU."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import models
from models.classifier import Classifier
from models.graphs import Graph
from models.labels import Label
from models.volo import VARIANTS
from service.outputs import Wants
from service.pipeline import DEPTH, Pipeline

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def small_classifier(device: str) -> Classifier:
    torch.manual_seed(0)
    model = models.create_model(VARIANTS["volo_nano"], image_size=32, num_classes=10)
    labels = [Label(str(index)) for index in range(10)]
    return Classifier(model, name="small", crop_pct=1.0, labels=labels, device=device, precision="float32")


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def expected(classifier: Classifier, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = classifier.see(torch.from_numpy(batch)).logits.cpu().numpy()
    return logits


@devices
def test_a_graph_says_what_the_classifier_says_each_time_it_is_replayed(device: str) -> None:
    classifier = small_classifier(device)
    graph = Graph(classifier, 2)
    for seed in range(3):
        batch = pictures(2, seed)
        graph.pixels.copy_(torch.from_numpy(batch))
        graph.replay()
        np.testing.assert_allclose(graph.seen.logits.cpu().numpy(), expected(classifier, batch), atol=1e-5)


@devices
def test_graphs_beside_each_other_keep_their_own_scores(device: str) -> None:
    classifier = small_classifier(device)
    small = Graph(classifier, 1)
    large = Graph(classifier, 4, beside=small)
    for graph in (small, large, small):
        batch = pictures(len(graph.pixels), len(graph.pixels))
        graph.pixels.copy_(torch.from_numpy(batch))
        graph.replay()
        np.testing.assert_allclose(graph.seen.logits.cpu().numpy(), expected(classifier, batch), atol=1e-5)


@devices
def test_runs_that_overlap_get_each_their_own_scores(device: str) -> None:
    classifier = small_classifier(device)
    pipeline = Pipeline(classifier, max_batch=4)
    for size in (1, 4):
        pipeline.prepare(size)
    batches = [pictures(1 + seed % 4, seed) for seed in range(40)]
    with ThreadPoolExecutor(DEPTH) as threads:
        answers = threads.map(lambda batch: pipeline.run(list(batch), 1 if len(batch) == 1 else 4), batches)
        for batch, answer in zip(batches, answers, strict=True):
            np.testing.assert_allclose(answer.logits, expected(classifier, batch), atol=1e-5)


@devices
def test_a_run_that_raises_leaves_its_place_to_the_next(device: str) -> None:
    pipeline = Pipeline(small_classifier(device), max_batch=2)
    pipeline.prepare(2)
    for _ in range(DEPTH + 1):
        with pytest.raises(ValueError, match="broadcast"):
            pipeline.run([np.zeros((5, 5, 3), np.uint8)], 2)
    assert pipeline.run(list(pictures(2)), 2).logits.shape == (2, 10)


@devices
def test_features_and_evidence_come_when_they_are_wanted(device: str) -> None:
    classifier, batch = small_classifier(device), pictures(3)
    pipeline = Pipeline(classifier, max_batch=4)
    pipeline.prepare(4)
    seen = classifier.see(torch.from_numpy(batch))
    labels, maps = classifier.evidence(seen, 10)
    plain = pipeline.run(list(batch), 4)
    assert (plain.features, plain.evidence) == (None, None)
    full = pipeline.run(list(batch), 4, Wants.FEATURES | Wants.EVIDENCE)
    assert full.features is not None
    assert full.evidence is not None
    np.testing.assert_allclose(full.features, classifier.features(seen).cpu(), atol=1e-5)
    assert (full.evidence.labels == labels.cpu().numpy()).all()
    np.testing.assert_allclose(full.evidence.maps, maps.cpu(), atol=1e-5)
