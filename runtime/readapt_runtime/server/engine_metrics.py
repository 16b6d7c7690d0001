"""The engine's numbers in Prometheus' form, read off its latest ``EngineStats`` when somebody scrapes.

Besides our own names there are the few of vLLM's that gateways scrape (Gateway API Inference Extension, proposal 003):
queue lengths, the use of the cache, and which adapters run and wait, whose value is the time of the statement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from readapt_api.serving import AdapterState
from readapt_runtime.engine.stats import STEP_BOUNDS_S, EngineStats, StepTimes
from readapt_runtime.server.generation import Generation


@dataclass(frozen=True, slots=True, eq=False)
class EngineMetrics(Collector):
    """``build`` is what stays the same: version, revision, base, dtype."""

    model: str
    """The served name of the base."""
    build: Mapping[str, str]
    stats: Callable[[], EngineStats]
    generations: Callable[[], Sequence[Generation]]

    def collect(self) -> Iterator[Metric]:
        stats = self.stats()
        yield _labelled("readapt_build_info", "What runs here.", self.build, 1)
        yield from _sequences(stats)
        yield _adapters(self.generations())
        yield from _events(stats)
        yield from self._for_gateways(stats)

    def _for_gateways(self, stats: EngineStats) -> Iterator[Metric]:
        model = {"model_name": self.model}
        used = stats.kv_pages / stats.num_pages
        yield _labelled("vllm:num_requests_running", "Sequences in the batch.", model, stats.running)
        yield _labelled("vllm:num_requests_waiting", "Sequences in the queue.", model, stats.waiting)
        yield _labelled("vllm:gpu_cache_usage_perc", "Share of the pages with keys and values, 0 to 1.", model, used)
        yield _labelled("vllm:kv_cache_usage_perc", "The same under its later name.", model, used)
        adapters = {
            "max_lora": str(stats.max_running),
            "running_lora_adapters": ",".join(stats.running_adapters),
            "waiting_lora_adapters": ",".join(stats.waiting_adapters),
        }
        yield _labelled("vllm:lora_requests_info", "Adapters at work; the value is a time.", adapters, stats.at)


def _sequences(stats: EngineStats) -> Iterator[Metric]:
    sequences = GaugeMetricFamily("readapt_sequences", "Answers in the engine.", labels=["state"])
    sequences.add_metric(["running"], stats.running)
    sequences.add_metric(["waiting"], stats.waiting)
    yield sequences
    pages = GaugeMetricFamily("readapt_pool_pages", "Pages of the pool.", labels=["kind"])
    kinds = {
        "kv": stats.kv_pages,
        "cached": stats.cached_pages,
        "adapter": stats.adapter_pages,
        "free": stats.free_pages,
    }
    for kind, count in kinds.items():
        pages.add_metric([kind], count)
    yield pages


def _adapters(generations: Sequence[Generation]) -> Metric:
    by_state = Counter(generation.state for generation in generations)
    adapters = GaugeMetricFamily("readapt_adapters", "Adapters that are asked for, by state.", labels=["state"])
    for state in AdapterState:
        adapters.add_metric([state.value], by_state[state])
    return adapters


def _events(stats: EngineStats) -> Iterator[Metric]:
    counted = (
        ("readapt_adapter_loads", "Adapters copied into the pool.", stats.adapter_loads),
        ("readapt_adapter_evictions", "Adapters that made room for others.", stats.adapter_evictions),
        ("readapt_preemptions", "Sequences that lost their pages and came back.", stats.preemptions),
        ("readapt_prefix_hit_tokens", "Prompt tokens found in the prefix cache.", stats.prefix_hits),
        ("readapt_forward_passes", "Forward passes of the model.", stats.forward_passes),
    )
    for name, meaning, count in counted:
        yield CounterMetricFamily(name, meaning, value=count)
    yield _step_seconds(stats.steps)


def _step_seconds(steps: StepTimes) -> Metric:
    bounds = [*(str(bound) for bound in STEP_BOUNDS_S), "+Inf"]
    buckets = list(zip(bounds, accumulate(steps.counts), strict=True))
    return HistogramMetricFamily(
        "readapt_engine_step_seconds", "Steps of the engine.", buckets=buckets, sum_value=steps.total_s
    )


def _labelled(name: str, meaning: str, labels: Mapping[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family
