"""A sweep as TensorBoard's HParams tab takes it: an experiment, and a session for each trial.

TensorBoard's own way to write them all needs TensorFlow; these are the same messages, by its protocol
(tensorboard/plugins/hparams/api.proto).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from launcher.sweeps import shown

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from cluster.trials import Trial
    from trainers.tuning import Domain

Spaces = Iterable[Mapping[str, "Domain"]]


def experiment(spaces: Spaces, metrics: Iterable[str]) -> Summary:
    """Return what was searched, by all sweeps that are shown together, and the tags of what they are compared by."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    domains = {key: domain for space in spaces for key, domain in space.items()}
    infos = [_info(key, domain) for key, domain in domains.items()]
    known = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=tag) for tag in metrics]
    content = api_pb2.Experiment(hparam_infos=infos, metric_infos=known)
    return _summary(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=content))


def session_start(trial: Trial, group: str, space: Mapping[str, Domain]) -> Summary:
    """Return what a trial was given."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    content = plugin_data_pb2.SessionStartInfo(group_name=group, start_time_secs=trial.started)
    for key, value in trial.point.items():
        kind = _kind(space[key]) if key in space else type(value)
        if kind is bool:
            content.hparams[key].bool_value = value
        elif kind in (int, float):
            content.hparams[key].number_value = value
        else:
            content.hparams[key].string_value = shown(value)
    return _summary(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=content))


def session_end(trial: Trial) -> Summary:
    """Return how a trial ended: one that was ended early did so well."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_FAILURE if trial.state == "FAILED" else api_pb2.STATUS_SUCCESS
    content = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=trial.ended or 0.0)
    return _summary(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=content))


def _info(key: str, domain: Domain) -> Any:
    from tensorboard.plugins.hparams import api_pb2

    kinds = {bool: api_pb2.DATA_TYPE_BOOL, float: api_pb2.DATA_TYPE_FLOAT64, str: api_pb2.DATA_TYPE_STRING}
    info = api_pb2.HParamInfo(name=key, type=kinds[_kind(domain)], differs=True)
    listed = domain.choice or domain.grid
    if listed is None:
        info.domain_interval.min_value, info.domain_interval.max_value = domain.ends.values()
    else:
        info.domain_discrete.extend([shown(value) if _kind(domain) is str else value for value in listed])
    return info


def _kind(domain: Domain) -> type:
    """Return what all values of a domain are: bool, float or, where they differ or are blocks, str."""
    values = domain.choice or domain.grid or [0.0]
    if all(isinstance(value, bool) for value in values):
        return bool
    return float if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) else str


def _summary(tag: str, content: Any) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    about = metadata.create_summary_metadata(content)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])
