"""Gin files that were written for an earlier release name modules by where they were then."""

from gin import config as gin_config

# Module of an earlier release -> (its package today, its name there).
_MOVED = {
    "nlhf_jax.builders": ("nlhf_jax.jobs", "builders"),
    "nlhf_jax.chain": ("nlhf_jax.jobs", "chain"),
    "nlhf_jax.games.jobs": ("nlhf_jax", "jobs"),
    "nlhf_jax.games.learner_findings": ("nlhf_jax.studies", "learner_findings"),
    "nlhf_jax.games.reward_findings": ("nlhf_jax.studies", "reward_findings"),
    "nlhf_jax.games.sequence_learning": ("nlhf_jax.studies", "sequence_learning"),
    "nlhf_jax.games.solver_findings": ("nlhf_jax.studies", "solver_findings"),
}

_process_import = gin_config.ParseContext.process_import


def install() -> None:
    """From now on `from nlhf_jax import builders` in a gin file imports `nlhf_jax.jobs.builders`.

    Gin knows functions by what they are, not by the name they were imported under, so files with
    names of both releases can include each other.
    """
    gin_config.ParseContext.process_import = _process_import_by_todays_name


def _process_import_by_todays_name(context, statement):
    if statement.is_from and statement.module in _MOVED:
        package, name = _MOVED[statement.module]
        alias = statement.alias or statement.bound_name()
        statement = statement._replace(
            module=f"{package}.{name}", alias=None if alias == name else alias
        )
    return _process_import(context, statement)
