"""`marginal-cost`: where the request is answered soonest, at the least cost to the others.

All terms are seconds. For endpoint i, with h_i cached of n prompt tokens:

    J_i     = W_i + V_i + S_i (1 + theta_i) + D_i + H_i + L_i
    S_i     = a (n - h_i) + q (n - h_i) (h_i + (n - h_i) / 2)   its own prompt
    W_i     = prompts booked there and not yet computed
    V_i     = 10 s x (KV tokens beyond 92 % of the cache) / cache   waiting for KV blocks
    D_i     = (b B_i + c KV_i) E                                its own E output tokens, slowed down
    H_i     = what leaving its session's endpoint costs, at all others (`affinity.weight_s`)
    L_i     = loading its LoRA adapter, where that is not in a slot (router._adapters)
    theta_i = kB B_i / (1 - r_i) + kR rho / (1 - rho) + kM full_i h / (1 - h)

theta is the price of a second of compute put on i: each of the B_i running there stands still for
it (kB), and stays the longer to meet the prompts that come meanwhile, which take r_i of i's time
(of those from here) and go before its tokens: a second ends up as 1 / (1 - r_i); the busier the
endpoints are (rho), the longer it makes those wait that come later (kR, the externality of an
M/G/1 queue); and it fills a full cache with blocks that push out others, which would have been
asked for again with odds h / (1 - h) (kM). rho is known of what has come, not of what comes: it
counts as at least a half, so that equal prompts of a burst, which finds all idle, meet instead of
being computed everywhere. So a cache hit is worth the more, the busier the fleet is.
"""

from router._policy cimport Ask, Policy, hit_tokens, prompt_share
from router._table cimport Profile, Standing, Table, prefill_time_s, stand

cdef double KV_KNEE = 0.92
# How long a request stays that must end before there is room for another.
cdef double RESIDENCE_S = 10.0
cdef double MAX_PRESSURE = 0.95
cdef double MAX_CROWDING = 20.0


cdef class MarginalCost(Policy):
    """The weights are for the lab's ablations; `regrowth` is that of r_i."""

    reads_prompts = True
    counts_seconds = True
    terms = ("wait_s", "kv_wait_s", "own_s", "price", "decode_s", "home_s", "adapter_s")

    cdef double k_batch
    cdef double k_pressure
    cdef double k_memory
    cdef double decode
    cdef double regrowth
    cdef double least_pressure
    cdef double crowding        # of this request: the same for all endpoints
    cdef double eviction

    def __init__(self, str name, seed=0, *, k_batch=0.1, k_pressure=3.0, k_memory=1.0, decode=1.0,
                 regrowth=1.0, least_pressure=0.5):
        super().__init__(name, seed)
        self.k_batch = k_batch
        self.k_pressure = k_pressure
        self.k_memory = k_memory
        self.decode = decode
        self.regrowth = regrowth
        self.least_pressure = least_pressure

    cdef void prepare(self, Table table, const Ask* ask) noexcept nogil:
        cdef double busy = max(self.least_pressure, min(ask.pressure, MAX_PRESSURE))
        cdef double hits = min(ask.hit_ratio, MAX_PRESSURE)
        self.crowding = min(self.k_pressure * busy / (1 - busy), MAX_CROWDING)
        self.eviction = self.k_memory * hits / (1 - hits)

    cdef double cost(self, Table table, const Ask* ask, int slot, double* terms) noexcept nogil:
        cdef const Profile* profile = &table.rows[slot].profile
        cdef Standing load
        cdef double own, price, decode, kv_wait = 0, away_s = 0, load_s = 0, over
        stand(table, slot, ask.now_s, &load)
        own = prefill_time_s(profile, ask.n_tokens, hit_tokens(table, ask, slot))
        price = self.k_batch * load.in_flight / (
            1 - min(self.regrowth * prompt_share(ask, slot), MAX_PRESSURE)) + self.crowding
        if table.rows[slot].full:
            price += self.eviction
        decode = self.decode * ask.out_tokens * (
            profile.decode_seq_s * load.in_flight + profile.decode_ctx_s * load.kv_tokens)
        if profile.kv_tokens > 0:
            over = load.kv_tokens + ask.n_tokens + ask.out_tokens - KV_KNEE * profile.kv_tokens
            if over > 0:
                kv_wait = RESIDENCE_S * over / profile.kv_tokens
        if ask.home >= 0 and ask.home != slot:
            away_s = ask.home_s
        if ask.load_s != NULL:
            load_s = ask.load_s[slot]
        if terms != NULL:
            terms[0] = load.wait_s
            terms[1] = kv_wait
            terms[2] = own
            terms[3] = price
            terms[4] = decode
            terms[5] = away_s
            terms[6] = load_s
        return away_s + load_s + (
            load.wait_s + kv_wait + own * (1 + price) + decode) / table.rows[slot].share
