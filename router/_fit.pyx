"""See _fit.pxd."""

from libc.math cimport pow
from libc.string cimport memset

from router._table cimport Load, Profile, Sums, Table

cdef double MEMORY = 200.0              # observations until one counts half
cdef double PRIOR = 20.0                # observations that the starting profile stands for
cdef double FARTHEST = 30.0             # from the starting profile, as a factor either way
cdef double STEP = 0.2                  # of the way to the new estimate, per update
# What the observations of the prior had for x1 and x2: a usual request.
cdef double USUAL_NEW = 2000.0
cdef double USUAL_CONTEXT = 4000.0
cdef double USUAL_REQUESTS = 16.0


cdef class Fit:
    """Of the endpoint in `slot`, whose row holds the profile to start from."""

    def __init__(self, Table table, int slot):
        cdef Profile* profile
        table._check(slot)
        self.table = table
        self.slot = slot
        profile = &table.rows[slot].profile
        begin(&self.prefill, profile.base_s, profile.chunk_token_s, profile.chunk_token_ctx_s,
              USUAL_NEW, USUAL_NEW * USUAL_CONTEXT)
        begin(&self.decode, profile.base_s, profile.decode_seq_s, profile.decode_ctx_s,
              USUAL_REQUESTS, USUAL_REQUESTS * USUAL_CONTEXT)
        collect(table, slot, &self.prefill.seen, &self.decode.seen)

    def update(self):
        """Take in what is new since the last call, and write the row. True: there was something."""
        cdef Profile* profile = &self.table.rows[self.slot].profile
        cdef Sums prefill, decode
        cdef double[3] found
        cdef bint changed = False
        collect(self.table, self.slot, &prefill, &decode)
        if take(&self.prefill, &prefill) and solve(&self.prefill, found):
            profile.base_s += STEP * (found[0] - profile.base_s)
            profile.chunk_token_s += STEP * (found[1] - profile.chunk_token_s)
            profile.chunk_token_ctx_s += STEP * (found[2] - profile.chunk_token_ctx_s)
            changed = True
        if take(&self.decode, &decode) and solve(&self.decode, found):
            profile.decode_seq_s += STEP * (found[1] - profile.decode_seq_s)
            profile.decode_ctx_s += STEP * (found[2] - profile.decode_ctx_s)
            changed = True
        return changed


cdef void begin(Line* line, double base, double one, double two, double usual_one,
                double usual_two) noexcept nogil:
    memset(line, 0, sizeof(Line))
    line.prior[0] = base
    line.prior[1] = one
    line.prior[2] = two
    line.scale[0] = 1
    line.scale[1] = usual_one
    line.scale[2] = usual_two


cdef void collect(Table table, int slot, Sums* prefill, Sums* decode) noexcept nogil:
    """The sums of all workers."""
    cdef Load* load
    cdef int worker, at
    memset(prefill, 0, sizeof(Sums))
    memset(decode, 0, sizeof(Sums))
    for worker in range(table.n_workers):
        load = table.cell(worker, slot)
        for at in range(6):
            prefill.xx[at] += load.prefill.xx[at]
            decode.xx[at] += load.decode.xx[at]
        for at in range(3):
            prefill.xy[at] += load.prefill.xy[at]
            decode.xy[at] += load.decode.xy[at]


cdef bint take(Line* line, const Sums* total) noexcept nogil:
    """Add what is new; False: nothing."""
    cdef double n = total.xx[0] - line.seen.xx[0]
    cdef double fade
    cdef int at
    if n < 1:
        return False
    fade = pow(0.5, n / MEMORY)
    for at in range(6):
        line.counts.xx[at] = fade * line.counts.xx[at] + total.xx[at] - line.seen.xx[at]
    for at in range(3):
        line.counts.xy[at] = fade * line.counts.xy[at] + total.xy[at] - line.seen.xy[at]
    line.seen = total[0]
    return True


cdef bint solve(const Line* line, double* found) noexcept nogil:
    """Least squares with the prior as ridge, in units of the prior's usual x; clamped."""
    cdef double[3][4] m
    cdef double factor, swap
    cdef int row, column, other, best
    cdef int[3][3] at
    at[0][0], at[0][1], at[0][2] = 0, 1, 2
    at[1][0], at[1][1], at[1][2] = 1, 3, 4
    at[2][0], at[2][1], at[2][2] = 2, 4, 5
    for row in range(3):
        for column in range(3):
            m[row][column] = line.counts.xx[at[row][column]] / (
                line.scale[row] * line.scale[column])
        m[row][row] += PRIOR
        m[row][3] = line.counts.xy[row] / line.scale[row] + PRIOR * line.prior[row] * (
            line.scale[row])
    for column in range(3):
        best = column
        for row in range(column + 1, 3):
            if abs(m[row][column]) > abs(m[best][column]):
                best = row
        if abs(m[best][column]) < 1e-12:
            return False
        for other in range(4):
            swap = m[column][other]
            m[column][other] = m[best][other]
            m[best][other] = swap
        for row in range(3):
            if row != column:
                factor = m[row][column] / m[column][column]
                for other in range(column, 4):
                    m[row][other] -= factor * m[column][other]
    for row in range(3):
        found[row] = m[row][3] / m[row][row] / line.scale[row]
        found[row] = max(line.prior[row] / FARTHEST, min(found[row], line.prior[row] * FARTHEST))
    return True
