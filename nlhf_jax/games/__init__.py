"""Tabular preference games, solved exactly: pure JAX, no TensorFlow.

    from nlhf_jax.games import families, solvers
    from nlhf_jax.games.equilibrium import regularized_equilibrium

    game = families.rock_paper_scissors(tau=0.1)
    equilibrium = regularized_equilibrium(game)
    trajectory = solvers.solve(
        game, solvers.NashMD(), steps=1000, metrics=("kl",), equilibrium=equilibrium.log_policy
    )
    trajectory.metrics["last"]["kl"]  # [1001]

Everything works on float32 and float64; `with jax.enable_x64(True):` around it asks for float64.
A policy is an array of log-probabilities `[X, Y]`: X contexts (prompts), Y actions (responses).
"""
