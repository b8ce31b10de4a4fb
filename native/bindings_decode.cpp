// The mixers for Python, with their handles: of one token, and of a chunk.
//
// A mixer's handle is made once from its dimensions and small weights, which it copies.

#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "block.h"
#include "chunk_attention.h"

namespace flashmoe::bindings {
namespace {

using Floats = Array<float>;
using ConstFloats = Array<const float>;

constexpr std::size_t kMost = std::size_t{1} << 24;  // no dimension of a model reaches it

std::size_t dimension(std::int64_t given) {
    require(given >= 1 && given <= static_cast<std::int64_t>(kMost), "a dimension is out of range");
    return static_cast<std::size_t>(given);
}

std::vector<float> copied(const ConstFloats& array, std::size_t count, const char* what) {
    const float* from = floats_of(array, count, what);
    return {from, from + count};
}

// Keeps the weights of a block alive. Its mixer is given with each call.
class BlockHandle {
public:
    BlockHandle(const ConstFloats& norm, float eps, const nb::list& inputs, const MatrixHandle& out)
        : parts_(nb::make_tuple(nb::tuple(inputs), out.parts)),
          norm_(copied(norm, out_of(out.matrix), "norm must be (hidden)")),
          block_{norm_.data(), eps, {}, out.matrix} {
        for (const nb::handle each : inputs) {
            block_.inputs.push_back(handle_of<MatrixHandle>(each, "inputs are matrices").matrix);
            require(in_of(block_.inputs.back()) == block_.hidden(), "inputs must take hidden");
        }
    }
    BlockHandle(const BlockHandle&) = delete;
    BlockHandle& operator=(const BlockHandle&) = delete;

    // `widths` of its inputs and `mixed` of its mixer's result are those that the mixer has.
    void run(const InstructionSet& set, const ConstFloats& x,
             const std::vector<std::size_t>& widths, std::size_t mixed, const Mixer& mixer,
             const Floats& y, int threads) const {
        bool fits = widths.size() == block_.inputs.size() && mixed == in_of(block_.out);
        for (std::size_t i = 0; fits && i < widths.size(); ++i)
            fits = widths[i] == out_of(block_.inputs[i]);
        require(fits, "this block is another mixer's");
        const float* from = floats_of(x, block_.hidden(), "x must be (hidden)");
        float* into = floats_of(y, block_.hidden(), "y must be (hidden)");
        require_apart(from, block_.hidden(), into, block_.hidden(), "y must not overwrite x");
        const NativeWork working;
        residual(set, block_, from, mixer, into, threads);
    }

private:
    nb::tuple parts_;
    std::vector<float> norm_;
    Block block_;
};

class DeltaNet {
public:
    DeltaNet(std::int64_t key_heads, std::int64_t value_heads, std::int64_t key_dim,
             std::int64_t value_dim, const ConstMatrix32& conv, const ConstFloats& decay,
             const ConstFloats& dt_bias, const ConstFloats& norm, float eps) {
        step_ = {};
        step_.key_heads = dimension(key_heads);
        step_.value_heads = dimension(value_heads);
        step_.key_dim = dimension(key_dim);
        step_.value_dim = dimension(value_dim);
        step_.taps = dimension(static_cast<std::int64_t>(conv.shape(1)));
        step_.eps = eps;
        require(step_.value_heads % step_.key_heads == 0, "value heads must divide over key heads");
        const std::size_t channels = step_.channels();
        const float* given =
            floats_of(conv, channels * step_.taps, "conv must be (channels, taps)");
        conv_.resize(channels * step_.taps);
        for (std::size_t c = 0; c < channels; ++c)
            for (std::size_t tap = 0; tap < step_.taps; ++tap)
                conv_[tap * channels + c] = given[c * step_.taps + tap];
        decay_ = copied(decay, step_.value_heads, "decay must be (value heads)");
        dt_bias_ = copied(dt_bias, step_.value_heads, "dt_bias must be (value heads)");
        norm_ = copied(norm, step_.value_dim, "norm must be (value dim)");
    }
    DeltaNet(const DeltaNet&) = delete;
    DeltaNet& operator=(const DeltaNet&) = delete;

    void step(const ConstFloats& qkv, const ConstFloats& z, const ConstFloats& b,
              const ConstFloats& a, const ConstFloats& conv_in, const ConstFloats& delta_in,
              const Floats& conv_out, const Floats& delta_out, const Floats& y, int threads,
              const std::string& set_name) const {
        require_threads(threads);
        const InstructionSet& set = set_of(set_name);
        DeltaStep s = on(conv_in, delta_in, conv_out, delta_out);
        const std::size_t values = s.value_heads * s.value_dim;
        s.qkv = floats_of(qkv, s.channels(), "qkv must be (channels)");
        s.z = floats_of(z, values, "z must be (value heads, value dim)");
        s.b = floats_of(b, s.value_heads, "b must be (value heads)");
        s.a = floats_of(a, s.value_heads, "a must be (value heads)");
        s.y = floats_of(y, values, "y must be (value heads, value dim)");
        const NativeWork working;
        gated_delta(set, s, threads);
    }

    void chunk(const ConstMatrix32& qkv, const ConstFloats& z, const ConstFloats& b,
               const ConstFloats& a, const ConstFloats& conv_in, const ConstFloats& delta_in,
               const Floats& conv_out, const Floats& delta_out, const Floats& y, std::int64_t start,
               int threads, const std::string& set_name) const {
        require_threads(threads);
        require(start >= 0, "start must not be negative");
        const InstructionSet& set = set_of(set_name);
        DeltaStep s = on(conv_in, delta_in, conv_out, delta_out);
        const std::size_t tokens = qkv.shape(0), values = s.value_heads * s.value_dim;
        s.qkv = floats_of(qkv, tokens * s.channels(), "qkv must be (T, channels)");
        s.z = floats_of(z, tokens * values, "z must be (T, value heads, value dim)");
        s.b = floats_of(b, tokens * s.value_heads, "b must be (T, value heads)");
        s.a = floats_of(a, tokens * s.value_heads, "a must be (T, value heads)");
        s.y = floats_of(y, tokens * values, "y must be (T, value heads, value dim)");
        const NativeWork working;
        gated_delta(set, DeltaChunk{s, tokens, static_cast<std::size_t>(start)}, threads);
    }

    void block(const ConstFloats& x, const BlockHandle& block, const ConstFloats& conv_in,
               const ConstFloats& delta_in, const Floats& conv_out, const Floats& delta_out,
               const Floats& y, int threads, const std::string& set_name) const {
        require_threads(threads);
        const InstructionSet& set = set_of(set_name);
        DeltaStep s = on(conv_in, delta_in, conv_out, delta_out);
        const std::size_t values = s.value_heads * s.value_dim;
        const auto mixer = [&](const std::vector<const float*>& inputs, float* mixed) {
            s.qkv = inputs[0];
            s.z = inputs[1];
            s.b = inputs[2];
            s.a = inputs[3];
            s.y = mixed;
            gated_delta(set, s, threads);
        };
        block.run(set, x, {s.channels(), values, s.value_heads, s.value_heads}, values, mixer, y,
                  threads);
    }

private:
    // A step with its weights and state, but without its inputs.
    DeltaStep on(const ConstFloats& conv_in, const ConstFloats& delta_in, const Floats& conv_out,
                 const Floats& delta_out) const {
        DeltaStep s = step_;
        const std::size_t past = (s.taps - 1) * s.channels();
        const std::size_t state = s.value_heads * s.value_dim * s.key_dim;
        s.conv = conv_.data();
        s.decay = decay_.data();
        s.dt_bias = dt_bias_.data();
        s.norm = norm_.data();
        s.conv_in = floats_of(conv_in, past, "conv must be (taps - 1, channels)");
        s.conv_out = floats_of(conv_out, past, "conv must be (taps - 1, channels)");
        s.delta_in = floats_of(delta_in, state, "delta must be (value heads, key dim, value dim)");
        s.delta_out =
            floats_of(delta_out, state, "delta must be (value heads, key dim, value dim)");
        const char* apart = "the new state must not overwrite the old one";
        require_apart(s.delta_in, state, s.delta_out, state, apart);
        require_apart(s.conv_in, past, s.conv_out, past, apart);
        return s;
    }

    DeltaStep step_;
    std::vector<float> conv_, decay_, dt_bias_, norm_;
};

// Keeps the arrays of one layer alive, and what they mean.
class KeyValueHandle {
public:
    using Rows = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu>;

    KeyValueHandle(int kind, const Rows& keys, const Rows& values,
                   const std::optional<Matrix32>& key_scales,
                   const std::optional<Matrix32>& value_scales)
        : keys_(keys), values_(values), key_scales_(key_scales), value_scales_(value_scales) {
        require(kind >= 0 && kind <= 3, "a kind is 0 (f32), 1 (bf16), 2 (int8) or 3 (f16)");
        const nb::dlpack::dtype wanted = kind == 0   ? nb::dtype<float>()
                                         : kind == 2 ? nb::dtype<std::int8_t>()
                                                     : nb::dtype<std::uint16_t>();
        kv_ = {static_cast<KvKind>(kind),
               keys.data(),
               values.data(),
               nullptr,
               nullptr,
               keys.shape(0),
               keys.shape(1),
               keys.shape(2)};
        require(keys.dtype() == wanted && values.dtype() == wanted,
                "keys and values must be float32, uint16 or int8 as their kind says");
        for (std::size_t i = 0; i < 3; ++i)
            require(values.shape(i) == keys.shape(i) && keys.shape(i) >= 1,
                    "keys and values must be (kv heads, context, dim)");
        require(kind != 2 || (key_scales && value_scales), "int8 needs scales");
        if (kind != 2) return;
        const std::size_t count = kv_.heads * kv_.context;
        kv_.key_scales = floats_of(*key_scales, count, "scales must be (kv heads, context)");
        kv_.value_scales = floats_of(*value_scales, count, "scales must be (kv heads, context)");
    }

    const KeyValues& operator*() const { return kv_; }

private:
    Rows keys_, values_;
    std::optional<Matrix32> key_scales_, value_scales_;
    KeyValues kv_;
};

class Attention {
public:
    Attention(std::int64_t heads, std::int64_t kv_heads, std::int64_t dim, std::int64_t rope_dims,
              bool gated, const std::optional<ConstFloats>& q_norm,
              const std::optional<ConstFloats>& k_norm, float eps)
        : kv_heads_(dimension(kv_heads)), dim_(dimension(dim)) {
        step_ = {};
        step_.heads = dimension(heads);
        step_.rope_dims = dimension(rope_dims);
        step_.gated = gated;
        step_.eps = eps;
        require(step_.heads % kv_heads_ == 0, "heads must divide over kv heads");
        require(step_.rope_dims % 2 == 0 && step_.rope_dims <= dim_, "rope dims must fit the head");
        if (q_norm) q_norm_ = copied(*q_norm, dim_, "q_norm must be (dim)");
        if (k_norm) k_norm_ = copied(*k_norm, dim_, "k_norm must be (dim)");
    }
    Attention(const Attention&) = delete;
    Attention& operator=(const Attention&) = delete;

    void step(const ConstFloats& q, const ConstFloats& k, const ConstFloats& v,
              const ConstFloats& cos, const ConstFloats& sin, const KeyValueHandle& kv,
              std::int64_t position, const Floats& y, int threads,
              const std::string& set_name) const {
        require_threads(threads);
        const InstructionSet& set = set_of(set_name);
        AttendStep s = on(cos, sin, kv, position);
        s.q = floats_of(q, s.heads * dim_ * (s.gated ? 2 : 1), "q must be (heads, dim or 2 dim)");
        s.k = floats_of(k, kv_heads_ * dim_, "k must be (kv heads, dim)");
        s.v = floats_of(v, kv_heads_ * dim_, "v must be (kv heads, dim)");
        s.y = floats_of(y, s.heads * dim_, "y must be (heads, dim)");
        const NativeWork working;
        attend(set, s, threads);
    }

    void chunk(const ConstMatrix32& q, const ConstMatrix32& k, const ConstMatrix32& v,
               const ConstMatrix32& cos, const ConstMatrix32& sin, const KeyValueHandle& kv,
               std::int64_t position, const Matrix32& y, int threads,
               const std::string& set_name) const {
        require_threads(threads);
        const InstructionSet& set = set_of(set_name);
        const std::size_t tokens = k.shape(0), keys = tokens * kv_heads_ * dim_;
        AttendStep s = on(cos, sin, kv, position, tokens);
        const std::size_t queries = tokens * s.heads * dim_;
        s.q = floats_of(q, queries * (s.gated ? 2 : 1), "q must be (T, heads, dim or 2 dim)");
        s.k = floats_of(k, keys, "k must be (T, kv heads, dim)");
        s.v = floats_of(v, keys, "v must be (T, kv heads, dim)");
        s.y = floats_of(y, queries, "y must be (T, heads, dim)");
        const NativeWork working;
        attend(set, AttendChunk{s, tokens, 1}, threads);
    }

    // Most floats that a thread of chunk() holds.
    std::size_t unit_floats() const {
        AttendStep s = step_;
        s.kv.heads = kv_heads_;
        s.kv.dim = dim_;
        return AttendChunk{s, 1, AttendChunk::most_together(s.group())}.scratch();
    }

    void block(const ConstFloats& x, const BlockHandle& block, const ConstFloats& cos,
               const ConstFloats& sin, const KeyValueHandle& kv, std::int64_t position,
               const Floats& y, int threads, const std::string& set_name) const {
        require_threads(threads);
        const InstructionSet& set = set_of(set_name);
        AttendStep s = on(cos, sin, kv, position);
        const std::size_t queries = s.heads * dim_, keys = kv_heads_ * dim_;
        const auto mixer = [&](const std::vector<const float*>& inputs, float* mixed) {
            s.q = inputs[0];
            s.k = inputs[1];
            s.v = inputs[2];
            s.y = mixed;
            attend(set, s, threads);
        };
        block.run(set, x, {queries * (s.gated ? 2 : 1), keys, keys}, queries, mixer, y, threads);
    }

private:
    // A step, or the first of several, with its weights and state, but without its inputs.
    template <class Angles>
    AttendStep on(const Angles& cos, const Angles& sin, const KeyValueHandle& kv,
                  std::int64_t position, std::size_t tokens = 1) const {
        AttendStep s = step_;
        s.kv = *kv;
        require(s.kv.heads == kv_heads_ && s.kv.dim == dim_, "these keys are another layer's");
        s.position = static_cast<std::size_t>(position);
        require(position >= 0 && s.position < s.kv.context && tokens >= 1 &&
                    tokens <= s.kv.context - s.position,
                "positions must lie within the context");
        s.q_norm = q_norm_.empty() ? nullptr : q_norm_.data();
        s.k_norm = k_norm_.empty() ? nullptr : k_norm_.data();
        const std::size_t angles = tokens * (s.rope_dims / 2);
        s.cos = floats_of(cos, angles, "cos must be (T, rope dims / 2)");
        s.sin = floats_of(sin, angles, "sin must be (T, rope dims / 2)");
        return s;
    }

    AttendStep step_;
    std::size_t kv_heads_, dim_;
    std::vector<float> q_norm_, k_norm_;
};

}  // namespace

void bind_decode(nb::module_& module) {
    nb::class_<BlockHandle>(module, "Block")
        .def(nb::init<const ConstFloats&, float, const nb::list&, const MatrixHandle&>(),
             "norm"_a.noconvert(), "eps"_a, "inputs"_a, "out"_a);
    nb::class_<DeltaNet>(module, "DeltaNet")
        .def(nb::init<std::int64_t, std::int64_t, std::int64_t, std::int64_t, const ConstMatrix32&,
                      const ConstFloats&, const ConstFloats&, const ConstFloats&, float>(),
             "key_heads"_a, "value_heads"_a, "key_dim"_a, "value_dim"_a, "conv"_a.noconvert(),
             "decay"_a.noconvert(), "dt_bias"_a.noconvert(), "norm"_a.noconvert(), "eps"_a)
        .def("step", &DeltaNet::step, "qkv"_a.noconvert(), "z"_a.noconvert(), "b"_a.noconvert(),
             "a"_a.noconvert(), "conv_in"_a.noconvert(), "delta_in"_a.noconvert(),
             "conv_out"_a.noconvert(), "delta_out"_a.noconvert(), "y"_a.noconvert(), "threads"_a,
             "instruction_set"_a = "")
        .def("chunk", &DeltaNet::chunk, "qkv"_a.noconvert(), "z"_a.noconvert(), "b"_a.noconvert(),
             "a"_a.noconvert(), "conv_in"_a.noconvert(), "delta_in"_a.noconvert(),
             "conv_out"_a.noconvert(), "delta_out"_a.noconvert(), "y"_a.noconvert(), "start"_a,
             "threads"_a, "instruction_set"_a = "")
        .def("block", &DeltaNet::block, "x"_a.noconvert(), "block"_a, "conv_in"_a.noconvert(),
             "delta_in"_a.noconvert(), "conv_out"_a.noconvert(), "delta_out"_a.noconvert(),
             "y"_a.noconvert(), "threads"_a, "instruction_set"_a = "");
    nb::class_<KeyValueHandle>(module, "KeyValues")
        .def(nb::init<int, const KeyValueHandle::Rows&, const KeyValueHandle::Rows&,
                      const std::optional<Matrix32>&, const std::optional<Matrix32>&>(),
             "kind"_a, "keys"_a.noconvert(), "values"_a.noconvert(),
             "key_scales"_a.noconvert().none(), "value_scales"_a.noconvert().none());
    nb::class_<Attention>(module, "Attention")
        .def(
            nb::init<std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool,
                     const std::optional<ConstFloats>&, const std::optional<ConstFloats>&, float>(),
            "heads"_a, "kv_heads"_a, "dim"_a, "rope_dims"_a, "gated"_a,
            "q_norm"_a.noconvert().none(), "k_norm"_a.noconvert().none(), "eps"_a)
        .def("step", &Attention::step, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(),
             "cos"_a.noconvert(), "sin"_a.noconvert(), "kv"_a, "position"_a, "y"_a.noconvert(),
             "threads"_a, "instruction_set"_a = "")
        .def_prop_ro("unit_floats", &Attention::unit_floats)
        .def("chunk", &Attention::chunk, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(),
             "cos"_a.noconvert(), "sin"_a.noconvert(), "kv"_a, "position"_a, "y"_a.noconvert(),
             "threads"_a, "instruction_set"_a = "")
        .def("block", &Attention::block, "x"_a.noconvert(), "block"_a, "cos"_a.noconvert(),
             "sin"_a.noconvert(), "kv"_a, "position"_a, "y"_a.noconvert(), "threads"_a,
             "instruction_set"_a = "");
}

}  // namespace flashmoe::bindings
