// What the draw of a token computes over all scores: the highest, and sums of weights.
//
// Owns the formulas and the split into threads; which token is drawn of the sums is Python's to
// say (sampler.py). Vector code is written once, in draw_rows.h, and compiled for each instruction
// set (draw_*.cpp).
//
// A score x weighs 2^t, t = max((x - peak) * factor, -1023), in float64: with n the whole number
// nearest to t (of two, the even one) and f = t - n it is p(f) 2^n, where p is the polynomial of
// draw_rows.h. That is within 2^-43 of 2^t, relative; 1 for the peak and 0 for t of -1023. Every
// product and sum is rounded by itself, none fused, in an order that is prescribed.
//
// Invariant, a test: the same bits with every instruction set and number of threads, which are
// those of numpy going the same steps.

#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmoe {

constexpr std::size_t kDrawBlock = 512;  // scores a block; the last one may have fewer

// How far sums in float32 may be from those in float64, relative to the sum over all blocks, for up
// to 2^24 scores. With e = 2^-24: t is rounded three times, 3 e |t| ln(2), p seven times and a sum
// 16 times, and p's coefficients cost less than 2 e: below 96 e for t from -32 up. A score below
// that weighs less than 2^-32, and 2^24 of them with 160 e each come to less than 1 e of the
// peak's weight of 1. All in all, below 128 e.
constexpr double kGuess = 0x1p-17;

// Scores: logits (count), one of the two arrays, but for some with another value. All are finite
// or -inf from `peaks` on.
struct Scores {
    const float* narrow;
    const double* wide;
    std::size_t count;
    const std::int64_t* places;  // (changed), rising
    const double* values;        // (changed)
    std::size_t changed;

    std::size_t blocks() const { return (count + kDrawBlock - 1) / kDrawBlock; }
};

struct Scale {
    double peak, factor;  // the highest score; log2(e) / temperature, above 0 and finite
};

// The part that depends on the instruction set, under the rule of RowKernels in dispatch.h.
struct DrawKernels {
    // The highest of 1 to kDrawBlock numbers; NaN where one is not finite.
    double (*highest32)(const float* x, std::size_t count);
    double (*highest64)(const double* x, std::size_t count);
    // The sum of the weights of 1 to kDrawBlock scores. Weights i and i + 8 of each 16 are added,
    // then the eight sums of all 16s to eight partial sums in order, then partial sum i and i + 4,
    // i + 2, i + 1. Those beyond count are 0.
    double (*mass32)(const float* x, std::size_t count, const Scale& scale);
    double (*mass64)(const double* x, std::size_t count, const Scale& scale);
    // The same in float32, see kGuess; the peak is one of all the float32 scores.
    double (*guess32)(const float* x, std::size_t count, const Scale& scale);
    // The weights themselves.
    void (*weights)(const double* x, std::size_t count, const Scale& scale, double* y);
};

extern const DrawKernels draw_generic;
extern const DrawKernels draw_avx2, draw_avx512;  // x86-64 builds only

struct InstructionSet;  // dispatch.h

// The highest score of each block, y (blocks); NaN where a logit of it is not finite.
void peaks(const InstructionSet& set, const Scores& scores, double* y, int threads);

// The sum of the weights of each block, y (blocks).
void masses(const InstructionSet& set, const Scores& scores, const Scale& scale, double* y,
            int threads);

// The same in float32, within kGuess of the sum over all, if the logits are float32 and none has
// changed. For who can tell from that which block is looked for: it takes half the time.
void guesses(const InstructionSet& set, const Scores& scores, const Scale& scale, double* y,
             int threads);

// Scores [begin, end) as float64.
void widen(const Scores& scores, std::size_t begin, std::size_t end, double* y);

// Up to `room` of the scores that are not below `least`, by rising place; how many there are.
// `peaks` (blocks) are those of the scores. What does not fit is counted and not written.
std::size_t above(const Scores& scores, const double* peaks, double least, std::size_t room,
                  std::int64_t* places, double* values);

// The `count` highest scores, equal ones by lowest place, or all that are not below `least`, which
// may be any number that so many are not below; how many were found. In falling order, or the
// lowest of them last and the others in none, if not `ordered`.
std::size_t highest(const Scores& scores, const double* peaks, double least, std::size_t count,
                    bool ordered, std::int64_t* places, double* values);

// The lowest score of all, or of some, if that is below `enough`.
double lowest(const Scores& scores, double enough);

// The sum of the weights not below `min_p`, one by one by place, at the end of each block, y
// (blocks). No score below `least` weighs as much.
void kept_sums(const InstructionSet& set, const Scores& scores, const double* peaks, double least,
               const Scale& scale, double min_p, double* y);

// Slices of the falling order: a score is in number (x - peak) / temperature * steps, rounded
// down, or in the last. Left out is what is below `least`, equal to it beyond place `last`, weighs
// less than min_p, or nothing.
struct Slicing {
    Scale scale;
    double temperature, steps;  // steps: below 0
    double least;
    std::int64_t last;
    double min_p;
};

constexpr std::uint16_t kNoSlice = 0xFFFF;  // of a score left out

// The slice of each score, numbers (count), and the sum of the weights of each, one by one by
// place, y (slices). Returns such a sum over all slices, with what weighs less than min_p.
double slices(const InstructionSet& set, const Scores& scores, const Slicing& by,
              std::size_t slices, std::uint16_t* numbers, double* y);

// Up to `room` of the scores of a slice, by rising place; how many there are. What does not fit is
// counted and not written.
std::size_t members(const Scores& scores, const std::uint16_t* numbers, std::uint16_t slice,
                    std::size_t room, std::int64_t* places, double* values);

}  // namespace flashmoe
