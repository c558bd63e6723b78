"""Losses that compare rows with class proxies. The proxies live in `compare`; nothing here has
state."""

from __future__ import annotations

from nearkin.core import Comparison, Terms, home
from nearkin.reduce import log1p_sum_exp, mean, positive


@home("proxies", "cosine")
def proxy_anchor(c: Comparison, *, margin: float = 0.1, alpha: float = 32.0) -> Terms:
    """Proxy Anchor loss: each proxy is an anchor over the batch (Kim et al. 2020, eq. 4).

    tightness = mean over proxies present  log(1 + Σ_{same rows} e^{-α(s - margin)})
    contrast  = mean over all proxies      log(1 + Σ_{different rows} e^{α(s + margin)})

    Memory O(A·R).
    """
    positive(alpha=alpha)
    s = c.similarity
    pull = log1p_sum_exp(-alpha * (s - margin), c.same, dim=0)
    push = log1p_sum_exp(alpha * (s + margin), c.different, dim=0)
    return Terms(tightness=mean(pull, c.same.any(0)), contrast=push.sum() / max(c.shape[1], 1))
