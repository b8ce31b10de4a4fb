// Attention of several tokens that pass together, in tiles of queries and blocks of keys.
//
// Owns the split into units and the scratch of one; the formulas are AttendStep's. The vector code
// is chunk_attention_rows.h. A unit is some tokens of one key head and all heads that read it: the
// rows of a block of keys become floats once for all of them.
//
// Invariants, each a test: a query's keys are taken in blocks of kContextBlock, counted from the
// start of the timeline, and each block's softmax is merged into those before it, in order; within
// a block every sum has one fixed order. So no result depends on which tokens pass together, on
// the number of threads, or on keys beyond the query's own position.

#pragma once

#include <cstddef>

#include "decode.h"

namespace flashmoe {

// `tokens` of them at first.position and after it. The arrays of `first` are those of all tokens:
// q (tokens, heads, dim or 2 dim), k and v (tokens, kv heads, dim), cos and sin (tokens, rope_dims
// / 2), y (tokens, heads, dim).
struct AttendChunk {
    static constexpr std::size_t kRows = 256;   // queries of a unit, where the group is no larger
    static constexpr std::size_t kFloats = 32;  // a row of floats in scratch is whole such groups
    static constexpr std::size_t kTile = 8;     // and queries are whole such groups

    AttendStep first;
    std::size_t tokens;
    std::size_t together;  // tokens of a unit, a power of two: no unit has a border of blocks in it

    // The most tokens whose queries are kRows, or one.
    static std::size_t most_together(std::size_t group) {
        std::size_t tokens = 1;
        while (2 * tokens * group <= kRows) tokens *= 2;
        return tokens;
    }

    AttendStep at(std::size_t t) const {
        AttendStep s = first;
        const std::size_t queries = s.heads * s.kv.dim, keys = s.kv.heads * s.kv.dim;
        s.q += t * queries * (s.gated ? 2 : 1);
        s.k += t * keys;
        s.v += t * keys;
        s.cos += t * (s.rope_dims / 2);
        s.sin += t * (s.rope_dims / 2);
        s.y += t * queries;
        s.position += t;
        return s;
    }

    // Stretches of `together` positions that have a token.
    std::size_t stretches() const {
        return (first.position + tokens - 1) / together - first.position / together + 1;
    }
    std::size_t units() const { return first.kv.heads * stretches(); }

    std::size_t padded() const { return (first.kv.dim + kFloats - 1) / kFloats * kFloats; }
    std::size_t rows() const { return (together * first.group() + kTile - 1) / kTile * kTile; }
    // Floats of a worker: queries, results and scores of a row, its maximum, sum and factor; a
    // block's keys and values.
    std::size_t scratch() const {
        return rows() * (2 * padded() + kContextBlock + 3) + 2 * kContextBlock * padded();
    }
};

// Appends keys and values, then attends; `together` is chosen here.
void attend(const InstructionSet& set, AttendChunk chunk, int threads);

}  // namespace flashmoe
