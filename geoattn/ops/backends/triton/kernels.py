# mypy: ignore-errors
"""Attention over compressed rows in Triton: forward, gradients by query, gradients by key.

One program owns a block of ``HEADS`` heads of a few consecutive rows of a bucket, and walks each row's edges in tiles
of ``EDGES``. Every output is owned by one program, so there are no atomics, and the same input gives the same bits.

Tiles are ``[EDGES, HEADS, WIDTH]``. ``HEADS * WIDTH`` is about 128, so that one warp reads the row of a key as one
contiguous piece, 16 bytes a lane in float32. All arithmetic is in ``SUM`` (float32, float64 for float64).

Only what a row's tile can hold is kept: probabilities are computed again from the log-sum-exp, never stored.
"""

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def _kept(seed, first_edge, threshold, edge, head, rescale, SUM: tl.constexpr):
    """What dropout multiplies the weights ``[EDGES, HEADS]`` by: 0, or ``rescale``."""
    edge, head = tl.broadcast(edge + tl.full([], first_edge, tl.int64), head)
    low, high = (edge & 0xFFFFFFFF).to(tl.uint32), (edge >> 32).to(tl.uint32)
    block = (head // 4).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, low, high, block, block * 0)
    word = head % 4
    random = tl.where(word == 0, w0, tl.where(word == 1, w1, tl.where(word == 2, w2, w3)))
    return tl.where(random.to(tl.int64) >= threshold, tl.full([], rescale, SUM), 0.0)


@triton.jit
def _score(query, key, att, scale, slope, SUM: tl.constexpr):
    """Of tiles that broadcast to ``[EDGES, HEADS, WIDTH]``."""
    if att is None:
        return tl.sum(query * key, 2) * tl.full([], scale, SUM)
    else:
        return tl.sum(att * _leaky_relu(query + key, slope, SUM), 2)


@triton.jit
def _leaky_relu(x, slope, SUM: tl.constexpr):
    return tl.where(x > 0, x, x * tl.full([], slope, SUM))


@triton.jit
def _score_gradient(query, key, att, scale, slope, SUM: tl.constexpr):
    """``(d score / d query, d score / d key)``, which broadcast to ``[EDGES, HEADS, WIDTH]``."""
    if att is None:
        return key * tl.full([], scale, SUM), query * tl.full([], scale, SUM)
    else:
        both = att * tl.where(query + key > 0, tl.full([], 1.0, SUM), tl.full([], slope, SUM))
        return both, both


@triton.jit
def _per_head(pointer, row, head, live, HEADS_HELD: tl.constexpr, H: tl.constexpr, SUM: tl.constexpr):
    """Rows of a contiguous ``[*, HEADS_HELD]`` tensor for each query head."""
    return tl.load(pointer + row * HEADS_HELD + head // (H // HEADS_HELD), mask=live, other=0.0).to(SUM)


@triton.jit
def _edge_rows(
    pointer, edge, head, dim, live, HELD: tl.constexpr, WIDTH: tl.constexpr, H: tl.constexpr, SUM: tl.constexpr
):
    """Rows of a contiguous ``[E, HELD, WIDTH]`` tensor for each query head."""
    address = pointer + (edge * HELD + head // (H // HELD)) * WIDTH + dim
    return tl.load(address, mask=live & (dim < WIDTH), other=0.0).to(SUM)


@triton.jit
def _store_shared(
    pointer,
    x,  # [ROWS, HEADS, TILE], 0 in heads that are not there
    row,  # [ROWS, 1, 1]
    live,  # [ROWS, 1, 1]
    first_head,
    HELD: tl.constexpr,
    WIDTH: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Into a contiguous ``[*, HELD, WIDTH]`` tensor of which each head serves ``H / HELD`` query heads.

    Query heads of this program that share one are summed; launches over further ones come in order and add to it.
    """
    SHARING: tl.constexpr = H // HELD
    MERGED: tl.constexpr = SHARING if HEADS % SHARING == 0 else HEADS
    if MERGED > 1:
        x = tl.sum(tl.reshape(x, [ROWS, HEADS // MERGED, MERGED, TILE]), 2)
    head = first_head // SHARING + tl.arange(0, HEADS // MERGED)[None, :, None]
    dim = tl.arange(0, TILE)[None, None, :]
    address = pointer + (row * HELD + head) * WIDTH + dim
    live = live & (head < HELD) & (dim < WIDTH)
    if SHARING > HEADS:  # noqa: SIM102 - known when compiling
        if first_head % SHARING != 0:
            x += tl.load(address, mask=live, other=0.0)
    tl.store(address, x.to(pointer.dtype.element_ty), mask=live)


@triton.jit
def _rows_of_program(bounds, BUCKET: tl.constexpr):
    """First and last (exclusive) place in the bucket's order that this program works on."""
    start = tl.load(bounds + BUCKET)
    stop = tl.load(bounds + BUCKET + 1)
    share = tl.cdiv(stop - start, tl.num_programs(0))
    first = start + tl.program_id(0).to(tl.int64) * share
    return first, tl.minimum(first + share, stop)


@triton.jit(do_not_specialize=["seed", "first_edge", "threshold", "keys"])
def forward(
    query,
    key,
    value,
    rowptr,
    col,
    bias,
    log_weight,
    edge_key,
    edge_value,
    att,
    out,  # [N, H, C]
    lse,  # [N, H]
    order,
    bounds,
    query_row,
    key_row,
    value_row,
    keys,
    scale: tl.float64,
    slope: tl.float64,
    seed: tl.int64,
    first_edge: tl.int64,
    threshold: tl.int64,
    rescale: tl.float64,
    QUERY_HEAD: tl.constexpr,
    KEY_HEAD: tl.constexpr,
    VALUE_HEAD: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    BIAS_HEADS: tl.constexpr,
    WEIGHT_HEADS: tl.constexpr,
    EDGE_KEY_HEADS: tl.constexpr,
    EDGE_VALUE_HEADS: tl.constexpr,
    DROPOUT: tl.constexpr,
    SUM: tl.constexpr,
    HEADS: tl.constexpr,
    D_TILE: tl.constexpr,
    C_TILE: tl.constexpr,
    EDGES: tl.constexpr,
    BUCKET: tl.constexpr,
):
    """Softmax attention with the online softmax: one pass over the edges, any number of them."""
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    head2, head3 = heads[None, :], heads[None, :, None]
    d = tl.arange(0, D_TILE)[None, None, :]
    c = tl.arange(0, C_TILE)[None, None, :]
    d_live = (head3 < H) & (d < D)
    c_live = (head3 < H) & (c < C)
    if att is not None:
        a = tl.load(att + head3 * D + d, mask=d_live, other=0.0).to(SUM)
    else:
        a: tl.constexpr = None

    first, last = _rows_of_program(bounds, BUCKET)
    for place in range(first, last):
        row = tl.load(order + place).to(tl.int64)
        begin = tl.load(rowptr + row).to(tl.int64)
        end = tl.load(rowptr + row + 1).to(tl.int64)
        q = tl.load(query + row * query_row + head3 * QUERY_HEAD + d, mask=d_live, other=0.0).to(SUM)

        highest = tl.full([HEADS], float("-inf"), SUM)
        total = tl.zeros([HEADS], SUM)
        mixed = tl.zeros([HEADS, C_TILE], SUM)
        for tile in range(begin, end, EDGES):
            e = tile + tl.arange(0, EDGES)
            j = tl.load(col + e, mask=e < end, other=-1).to(tl.int64)
            live = (j >= 0) & (j < keys)
            e2, j2, live2 = e[:, None], j[:, None], live[:, None]
            e3, j3, live3 = e[:, None, None], j[:, None, None], live[:, None, None]

            k = tl.load(key + j3 * key_row + head3 // (H // G) * KEY_HEAD + d, mask=live3 & d_live, other=0.0).to(SUM)
            v = tl.load(value + j3 * value_row + head3 // (H // G) * VALUE_HEAD + c, mask=live3 & c_live, other=0.0)
            v = v.to(SUM)
            if edge_key is not None:
                k += _edge_rows(edge_key, e3, head3, d, live3 & d_live, EDGE_KEY_HEADS, D, H, SUM)
            if edge_value is not None:
                v += _edge_rows(edge_value, e3, head3, c, live3 & c_live, EDGE_VALUE_HEADS, C, H, SUM)
            s = _score(q, k, a, scale, slope, SUM)
            if bias is not None:
                s += _per_head(bias, e2, head2, live2 & (head2 < H), BIAS_HEADS, H, SUM)
            if log_weight is not None:
                s += _per_head(log_weight, j2, head2, live2 & (head2 < H), WEIGHT_HEADS, H, SUM)
            s = tl.where(live2, s, float("-inf"))

            new_highest = tl.maximum(highest, tl.max(s, 0))
            finite = tl.where(new_highest == float("-inf"), 0.0, new_highest)
            shrink = tl.exp(highest - finite)
            p = tl.exp(s - finite[None, :])
            total = total * shrink + tl.sum(p, 0)
            if DROPOUT:
                p *= _kept(seed, first_edge, threshold, e2, head2, rescale, SUM)
            mixed = mixed * shrink[:, None] + tl.sum(p[:, :, None] * v, 0)
            highest = new_highest

        empty = total == 0
        total = tl.where(empty, 1.0, total)
        mixed = mixed / total[:, None]
        c_flat = tl.arange(0, C_TILE)[None, :]
        flat_live = (heads[:, None] < H) & (c_flat < C)
        address = out + (row * H + heads[:, None]) * C + c_flat
        tl.store(address, mixed.to(out.dtype.element_ty), mask=flat_live)
        tl.store(lse + row * H + heads, tl.where(empty, float("-inf"), highest + tl.log(total)), mask=heads < H)


@triton.jit(do_not_specialize=["seed", "first_edge", "threshold", "keys", "head_block", "partial_row"])
def backward_rows(
    query,
    key,
    value,
    rowptr,
    col,
    bias,
    log_weight,
    edge_key,
    edge_value,
    att,
    out,
    lse,
    grad_out,  # [N, H, C]
    grad_lse,  # [N, H] or None
    delta,  # [N, H], written: sum(out * grad_out) - grad_lse
    grad_query,  # [N, H, D]
    grad_bias,
    grad_edge_key,
    grad_edge_value,
    grad_att,  # [programs, H, D], partial sums
    order,
    bounds,
    query_row,
    key_row,
    value_row,
    keys,
    head_block,
    head_block_step,
    partial_row,
    scale: tl.float64,
    slope: tl.float64,
    seed: tl.int64,
    first_edge: tl.int64,
    threshold: tl.int64,
    rescale: tl.float64,
    QUERY_HEAD: tl.constexpr,
    KEY_HEAD: tl.constexpr,
    VALUE_HEAD: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    BIAS_HEADS: tl.constexpr,
    WEIGHT_HEADS: tl.constexpr,
    EDGE_KEY_HEADS: tl.constexpr,
    EDGE_VALUE_HEADS: tl.constexpr,
    DROPOUT: tl.constexpr,
    SUM: tl.constexpr,
    HEADS: tl.constexpr,
    D_TILE: tl.constexpr,
    C_TILE: tl.constexpr,
    EDGES: tl.constexpr,
    BUCKET: tl.constexpr,
):
    """What belongs to a query or to an edge: gradients of query, bias, edge_key, edge_value; partial sums for att."""
    first_head = (head_block + tl.program_id(1) * head_block_step) * HEADS
    heads = first_head + tl.arange(0, HEADS)
    head2, head3 = heads[None, :], heads[None, :, None]
    d = tl.arange(0, D_TILE)[None, None, :]
    c = tl.arange(0, C_TILE)[None, None, :]
    d_live = (head3 < H) & (d < D)
    c_live = (head3 < H) & (c < C)
    if att is not None:
        a = tl.load(att + head3 * D + d, mask=d_live, other=0.0).to(SUM)
    else:
        a: tl.constexpr = None
    sum_att = tl.zeros([HEADS, D_TILE], SUM)

    EDGE_LOOP: tl.constexpr = (
        grad_query is not None
        or grad_bias is not None
        or grad_edge_key is not None
        or grad_edge_value is not None
        or grad_att is not None
    )
    first, last = _rows_of_program(bounds, BUCKET)
    for place in range(first, last):
        row = tl.load(order + place).to(tl.int64)
        do = tl.load(grad_out + (row * H + head3) * C + c, mask=c_live, other=0.0).to(SUM)
        o = tl.load(out + (row * H + head3) * C + c, mask=c_live, other=0.0).to(SUM)
        dl = tl.sum(do * o, 2)  # [1, HEADS]
        if grad_lse is not None:
            dl -= tl.load(grad_lse + row * H + head2, mask=head2 < H, other=0.0).to(SUM)
        tl.store(delta + row * H + head2, dl, mask=head2 < H)

        if EDGE_LOOP:
            begin = tl.load(rowptr + row).to(tl.int64)
            end = tl.load(rowptr + row + 1).to(tl.int64)
            q = tl.load(query + row * query_row + head3 * QUERY_HEAD + d, mask=d_live, other=0.0).to(SUM)
            logsum = tl.load(lse + row * H + head2, mask=head2 < H, other=0.0)
            logsum = tl.where(logsum == float("-inf"), 0.0, logsum)  # then every score is -inf and p is 0

            sum_query = tl.zeros([HEADS, D_TILE], SUM)
            for tile in range(begin, end, EDGES):
                e = tile + tl.arange(0, EDGES)
                in_row = e < end
                j = tl.load(col + e, mask=in_row, other=-1).to(tl.int64)
                live = (j >= 0) & (j < keys)
                e2, j2, live2 = e[:, None], j[:, None], live[:, None]
                e3, j3, live3 = e[:, None, None], j[:, None, None], live[:, None, None]

                k = tl.load(key + j3 * key_row + head3 // (H // G) * KEY_HEAD + d, mask=live3 & d_live, other=0.0).to(
                    SUM
                )
                v = tl.load(
                    value + j3 * value_row + head3 // (H // G) * VALUE_HEAD + c, mask=live3 & c_live, other=0.0
                ).to(SUM)
                if edge_key is not None:
                    k += _edge_rows(edge_key, e3, head3, d, live3 & d_live, EDGE_KEY_HEADS, D, H, SUM)
                if edge_value is not None:
                    v += _edge_rows(edge_value, e3, head3, c, live3 & c_live, EDGE_VALUE_HEADS, C, H, SUM)
                s = _score(q, k, a, scale, slope, SUM)
                if bias is not None:
                    s += _per_head(bias, e2, head2, live2 & (head2 < H), BIAS_HEADS, H, SUM)
                if log_weight is not None:
                    s += _per_head(log_weight, j2, head2, live2 & (head2 < H), WEIGHT_HEADS, H, SUM)
                p = tl.exp(tl.where(live2 & (head2 < H), s - logsum, float("-inf")))
                dp = tl.sum(do * v, 2)
                dropped = p
                if DROPOUT:
                    kept = _kept(seed, first_edge, threshold, e2, head2, rescale, SUM)
                    dp *= kept
                    dropped *= kept
                ds = p * (dp - dl)

                in_row3 = in_row[:, None, None]
                if grad_bias is not None:
                    _store_shared(grad_bias, ds[:, :, None], e3, in_row3, first_head, BIAS_HEADS, 1, H, EDGES, HEADS, 1)
                if grad_edge_value is not None:
                    dv = dropped[:, :, None] * do
                    _store_shared(
                        grad_edge_value, dv, e3, in_row3, first_head, EDGE_VALUE_HEADS, C, H, EDGES, HEADS, C_TILE
                    )
                to_query, to_key = _score_gradient(q, k, a, scale, slope, SUM)
                if grad_edge_key is not None:
                    dk = ds[:, :, None] * to_key
                    _store_shared(
                        grad_edge_key, dk, e3, in_row3, first_head, EDGE_KEY_HEADS, D, H, EDGES, HEADS, D_TILE
                    )
                if grad_query is not None:
                    sum_query += tl.sum(ds[:, :, None] * to_query, 0)
                if grad_att is not None:
                    sum_att += tl.sum(ds[:, :, None] * _leaky_relu(q + k, slope, SUM), 0)
            if grad_query is not None:
                d_flat = tl.arange(0, D_TILE)[None, :]
                address = grad_query + (row * H + heads[:, None]) * D + d_flat
                flat_live = (heads[:, None] < H) & (d_flat < D)
                tl.store(address, sum_query.to(grad_query.dtype.element_ty), mask=flat_live)
    if grad_att is not None:
        d_flat = tl.arange(0, D_TILE)[None, :]
        address = grad_att + ((partial_row + tl.program_id(0)).to(tl.int64) * H + heads[:, None]) * D + d_flat
        tl.store(address, sum_att, mask=(heads[:, None] < H) & (d_flat < D))


@triton.jit(do_not_specialize=["seed", "first_edge", "threshold", "queries", "head_block"])
def backward_columns(
    query,
    key,
    value,
    rowptr,  # of the transpose, as are row and edge
    row,
    edge,
    bias,
    log_weight,
    edge_key,
    edge_value,
    att,
    lse,
    grad_out,  # [N, H, C]
    delta,  # [N, H]
    grad_key,
    grad_value,
    grad_log_weight,
    order,
    bounds,
    query_row,
    key_row,
    value_row,
    queries,
    head_block,
    head_block_step,
    scale: tl.float64,
    slope: tl.float64,
    seed: tl.int64,
    first_edge: tl.int64,
    threshold: tl.int64,
    rescale: tl.float64,
    QUERY_HEAD: tl.constexpr,
    KEY_HEAD: tl.constexpr,
    VALUE_HEAD: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    BIAS_HEADS: tl.constexpr,
    WEIGHT_HEADS: tl.constexpr,
    EDGE_KEY_HEADS: tl.constexpr,
    EDGE_VALUE_HEADS: tl.constexpr,
    DROPOUT: tl.constexpr,
    SUM: tl.constexpr,
    HEADS: tl.constexpr,
    D_TILE: tl.constexpr,
    C_TILE: tl.constexpr,
    EDGES: tl.constexpr,
    BUCKET: tl.constexpr,
):
    """What belongs to a key: gradients of key, value and log_weight, along the edges that end in it."""
    first_head = (head_block + tl.program_id(1) * head_block_step) * HEADS
    heads = first_head + tl.arange(0, HEADS)
    head2, head3 = heads[None, :], heads[None, :, None]
    d = tl.arange(0, D_TILE)[None, None, :]
    c = tl.arange(0, C_TILE)[None, None, :]
    d_live = (head3 < H) & (d < D)
    c_live = (head3 < H) & (c < C)
    if att is not None:
        a = tl.load(att + head3 * D + d, mask=d_live, other=0.0).to(SUM)
    else:
        a: tl.constexpr = None

    first, last = _rows_of_program(bounds, BUCKET)
    for place in range(first, last):
        j = tl.load(order + place).to(tl.int64)
        begin = tl.load(rowptr + j).to(tl.int64)
        end = tl.load(rowptr + j + 1).to(tl.int64)
        key_j = tl.load(key + j * key_row + head3 // (H // G) * KEY_HEAD + d, mask=d_live, other=0.0).to(SUM)
        value_j = tl.load(value + j * value_row + head3 // (H // G) * VALUE_HEAD + c, mask=c_live, other=0.0).to(SUM)
        if log_weight is not None:
            weight_j = _per_head(log_weight, j, head2, head2 < H, WEIGHT_HEADS, H, SUM)

        sum_key = tl.zeros([HEADS, D_TILE], SUM)
        sum_value = tl.zeros([HEADS, C_TILE], SUM)
        sum_weight = tl.zeros([HEADS], SUM)
        for tile in range(begin, end, EDGES):
            t = tile + tl.arange(0, EDGES)
            i = tl.load(row + t, mask=t < end, other=-1).to(tl.int64)
            e = tl.load(edge + t, mask=t < end, other=0).to(tl.int64)
            live = (i >= 0) & (i < queries)
            e2, i2, live2 = e[:, None], i[:, None], live[:, None]
            e3, i3, live3 = e[:, None, None], i[:, None, None], live[:, None, None]
            live2 = live2 & (head2 < H)

            q = tl.load(query + i3 * query_row + head3 * QUERY_HEAD + d, mask=live3 & d_live, other=0.0).to(SUM)
            do = tl.load(grad_out + (i3 * H + head3) * C + c, mask=live3 & c_live, other=0.0).to(SUM)
            logsum = tl.load(lse + i2 * H + head2, mask=live2, other=0.0)
            logsum = tl.where(logsum == float("-inf"), 0.0, logsum)
            k = key_j
            if edge_key is not None:
                k += _edge_rows(edge_key, e3, head3, d, live3 & d_live, EDGE_KEY_HEADS, D, H, SUM)
            s = _score(q, k, a, scale, slope, SUM)
            if bias is not None:
                s += _per_head(bias, e2, head2, live2, BIAS_HEADS, H, SUM)
            if log_weight is not None:
                s += weight_j
            p = tl.exp(tl.where(live2, s - logsum, float("-inf")))
            if DROPOUT:
                kept = _kept(seed, first_edge, threshold, e2, head2, rescale, SUM)
            if grad_value is not None:
                dropped = p
                if DROPOUT:
                    dropped *= kept
                sum_value += tl.sum(dropped[:, :, None] * do, 0)
            if grad_key is not None or grad_log_weight is not None:
                v = value_j
                if edge_value is not None:
                    v += _edge_rows(edge_value, e3, head3, c, live3 & c_live, EDGE_VALUE_HEADS, C, H, SUM)
                dp = tl.sum(do * v, 2)
                if DROPOUT:
                    dp *= kept
                ds = p * (dp - tl.load(delta + i2 * H + head2, mask=live2, other=0.0))
                if grad_key is not None:
                    _, to_key = _score_gradient(q, k, a, scale, slope, SUM)
                    sum_key += tl.sum(ds[:, :, None] * to_key, 0)
                if grad_log_weight is not None:
                    sum_weight += tl.sum(ds, 0)

        here = tl.full([1, 1, 1], True, tl.int1)
        if grad_key is not None:
            _store_shared(grad_key, sum_key[None, :, :], j, here, first_head, G, D, H, 1, HEADS, D_TILE)
        if grad_value is not None:
            _store_shared(grad_value, sum_value[None, :, :], j, here, first_head, G, C, H, 1, HEADS, C_TILE)
        if grad_log_weight is not None:
            weight = sum_weight[None, :, None]
            _store_shared(grad_log_weight, weight, j, here, first_head, WEIGHT_HEADS, 1, H, 1, HEADS, 1)
