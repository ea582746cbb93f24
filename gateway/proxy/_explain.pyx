"""See _explain.pxd."""

from gateway.http.faults import REFUSALS
from gateway.reasons import REASONS, Reason

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from gateway.http._head cimport Head, parse_request
from gateway.proxy._asking cimport make_ids
from gateway.proxy._attempts cimport Attempts
from gateway.proxy._plane cimport Plane, now_s
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from router._policy cimport BUSY, hit_tokens

cdef enum:
    # Candidates in the header: the cheapest; a head has its limits.
    SHOWN = 8


cdef bytes decision_line(Plane plane, Attempts attempts, int slot, bint has_ids):
    text = (
        f"x-headgate-decision: endpoint={plane.pools[slot].endpoint.name} "
        f"policy={plane.router.policy.name} candidates={attempts.ask.n_slots} "
        f"in-flight={plane.table.in_flight(slot)} "
        f"cached-tokens={attempts.hit_tokens:.0f}/{attempts.ask.n_tokens:.0f} "
        f"known-by={'token-ids' if has_ids else 'text'} "
        f"dispatches={attempts.n_dispatches}"
    )
    if attempts.ask.session:
        text += f" session={session_word(attempts, slot)}"
    for entry in sorted(attempts.weighed, key=lambda entry: in_order(entry, slot))[:SHOWN]:
        text += "; " + " ".join(words_of(plane, entry))
    return (text + "\r\n").encode()


cdef str session_word(Attempts attempts, int slot):
    if attempts.ask.is_bound:
        return "bound"
    if attempts.ask.home < 0:
        return "new"
    return "home" if attempts.ask.home == slot else "moved"


cdef tuple in_order(dict entry, int slot):
    """Whoever has it, then by cost; at last those that may not."""
    return entry["slot"] != slot, not entry["may_take"], entry["cost"], entry["slot"]


cdef list words_of(Plane plane, dict entry):
    """A candidate: its name, its cost and what is not 0 of that."""
    words = [name_of(plane, entry["slot"])]
    if not entry["may_take"]:
        return [*words, f"({entry['why_not']})"]
    policy = plane.router.policy
    words.append(f"cost={in_unit(entry['cost'], policy.counts_seconds)}")
    for name in policy.terms:
        if entry[name]:
            words.append(f"{name.removesuffix('_s')}={in_unit(entry[name], name.endswith('_s'))}")
    return words


cdef str in_unit(double value, bint is_seconds):
    return f"{1000 * value:.4g}ms" if is_seconds else f"{value:.4g}"


cdef str name_of(Plane plane, int slot):
    pool = plane.pools[slot]
    return f"slot {slot}" if pool is None else pool.endpoint.name


def explain(Plane plane not None, bytes head, bytes body, str key, answer):
    """Where a request would go now, why, and why not elsewhere; as `/admin/explain` tells it.

    Runs the data path's own readers and policy over it; nothing is booked, sent or counted, but for
    token ids. `head`: with its empty line, without credentials. `key`: name of the key it is asked
    with; '': none. `answer(dict)` is called once, later if token ids have to be made first.
    """
    cdef Request request = Request(plane)
    found = read(plane, request, head, body, key)
    if found is not None:
        answer(found)
    elif request.wants_ids():
        make_ids(plane, request, lambda ids: answer(explained(plane, request, ids)))
    else:
        answer(explained(plane, request, None))


cdef dict read(Plane plane, Request request, bytes head, bytes body, str key):
    """None: it is fit to be sent somewhere; else why it is not."""
    cdef Head parsed
    cdef const char* p = PyBytes_AS_STRING(head)
    cdef int reason, fault = parse_request(p, PyBytes_GET_SIZE(head), &parsed)
    if fault < 0:
        return {"refused": {"reason": "bad_framing", "message": REFUSALS[fault].message}}
    request.clear()
    request.is_vouched = True
    if key and not request.vouch(key):
        return {"refused": {"reason": "unauthorized",
                            "message": f"There is no key called '{key}'."}}
    reason = request.read_head(p, &parsed)
    if reason:
        return {"refused": refusal(reason, request.details)}
    if request.path is None or request.path.local:
        return {"refused": {"reason": "local", "message": "Headgate answers this path itself."}}
    reason = request.read_body(body if body else None, PyBytes_GET_SIZE(body))
    if reason:
        return {"refused": refusal(reason, request.details)}
    return None


cdef dict explained(Plane plane, Request request, ids):
    cdef Attempts attempts = Attempts(plane)
    cdef Pool pool
    cdef int slot
    cdef double patience_s
    cdef int reason
    cdef unsigned int turn
    cdef unsigned long long drawn
    if ids is not None:
        request.take_ids(ids)
    # A policy whose equals take turns shall not miss one because somebody asked.
    turn, drawn = plane.router.policy.turn, plane.router.policy.state
    attempts.begin(request, now_s())
    slot = attempts.pick(request, now_s())
    if slot >= 0 and plane.waiting.n and attempts.is_behind(request, slot):
        slot = BUSY         # there is room, for others
    plane.router.policy.turn, plane.router.policy.state = turn, drawn
    found = {
        "worker": plane.column,
        "model": request.served.name,
        "policy": plane.router.policy.name,
        "unit": "s" if plane.router.policy.counts_seconds else "",
        "terms": list(plane.router.policy.terms),
        "prompt_tokens": round(attempts.ask.n_tokens, 1),
        "output_tokens": round(attempts.ask.out_tokens, 1),
        "prompt_blocks": request.prompt.n_keys,
        "prompt_is": "text" if ids is None else "token ids",
        "pressure": round(attempts.ask.pressure, 4),
        "hit_ratio": round(attempts.ask.hit_ratio, 4),
        "is_adapter": attempts.ask.adapter != 0,
        "session": session_word(attempts, slot) if attempts.ask.session else None,
        "labels": plane.label_texts(
            request.course.labels | request.key_labels, request.strange_labels),
        "waiting": plane.waiting.n,
        "ahead": plane.waiting.n_ahead(
            attempts.wants(request), request.priority, attempts.ask.since_s),
        "endpoint": None if slot < 0 else name_of(plane, slot),
        "candidates": [],
    }
    if slot >= 0:
        pool = plane.pools[slot]
        refused = pool.refusal(request)
        if refused is not None:
            found["refused"] = refused
    for entry in sorted(attempts.weigh(), key=lambda entry: in_order(entry, slot)):
        index = entry.pop("slot")
        found["candidates"].append({
            "endpoint": name_of(plane, index),
            "slot": index,
            "state": plane.table.row(index)[0].name.lower(),
            "in_flight": plane.table.in_flight(index),
            "cached_tokens": round(hit_tokens(plane.table, &attempts.ask, index), 1),
            **entry,
        })
    if slot < 0:
        patience_s = attempts.patience_s(slot, request)
        if patience_s > 0:
            found["waits_s"] = patience_s
        elif slot == BUSY:
            found["refused"] = refusal(Reason.HOLD_FULL, (f"{plane.waiting.n} requests wait",))
        else:
            reason, details = attempts.nobody(request)
            found["refused"] = refusal(reason, details)
    return found


cdef dict refusal(int reason, tuple details):
    words = REASONS[reason]
    return {"reason": Reason(reason).name.lower(), "status": words.status,
            "message": words.message.format(*details)}
