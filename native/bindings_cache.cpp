// The cache policy for Python: single calls, and those for the routing of one layer.
//
// The calls take microseconds, so they keep the interpreter, which also keeps them one at a time.
// Their time counts as native all the same.

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <span>
#include <tuple>

#include "bindings.h"
#include "cache.h"

namespace flashmoe::bindings {
namespace {

using Experts = std::vector<std::int64_t>;
using Slots = std::vector<std::int32_t>;
// (slot, layer, expert), the latter two of who was evicted, or -1 where nobody was.
using Admitted = std::tuple<std::int32_t, std::int64_t, std::int64_t>;

class PythonCache {
public:
    PythonCache(std::int64_t slots, std::int64_t layers, std::int64_t top_k)
        : cache_(slots, layers, top_k) {}

    std::int32_t lookup(std::int64_t layer, std::int64_t expert) {
        const Counted working;
        return cache_.lookup({layer, expert});
    }

    std::int32_t slot(std::int64_t layer, std::int64_t expert) const {
        return cache_.slot({layer, expert});
    }

    std::optional<Admitted> admit(std::int64_t layer, std::int64_t expert,
                                  std::optional<double> chance) {
        const Counted working;
        return admitted({layer, expert}, chance);
    }

    Slots lookup_all(std::int64_t layer, const Experts& experts) {
        const Counted working;
        Slots slots;
        slots.reserve(experts.size());
        for (const std::int64_t expert : experts) slots.push_back(cache_.lookup({layer, expert}));
        return slots;
    }

    // `rows`: the choices of a chunk's last tokens, a row each.
    Slots sweep(std::int64_t layer, const Experts& experts,
                const Array<const std::int64_t, nb::ndim<2>>& rows, std::int64_t tokens) {
        require(tokens >= 1, "a chunk has tokens");
        require(reinterpret_cast<std::uintptr_t>(rows.data()) % alignof(std::int64_t) == 0,
                "arrays of int64 must be aligned to 8 bytes");
        const Counted working;
        std::vector<std::int32_t> told(rows.size());
        for (std::size_t i = 0; i < rows.size(); ++i) {
            require(rows.data()[i] >= 0 && rows.data()[i] < kMostExperts, "no such expert");
            told[i] = static_cast<std::int32_t>(rows.data()[i]);
        }
        cache_.sweep(layer, experts, told, rows.shape(1), tokens);
        return slots_of(layer, experts);
    }

    Slots slots_of(std::int64_t layer, const Experts& experts) const {
        const Counted working;
        Slots slots;
        slots.reserve(experts.size());
        for (const std::int64_t expert : experts) slots.push_back(cache_.slot({layer, expert}));
        return slots;
    }

    std::vector<Admitted> admit_all(std::int64_t layer, const Experts& experts,
                                    const std::optional<std::vector<double>>& chances) {
        require(!chances || chances->size() == experts.size(), "a chance for each expert");
        const Counted working;
        std::vector<Admitted> all;
        all.reserve(experts.size());
        for (std::size_t i = 0; i < experts.size(); ++i) {
            const Key key{layer, experts[i]};
            const auto found = admitted(key, chances ? std::optional((*chances)[i]) : std::nullopt);
            if (!found) break;
            cache_.pin(key);
            all.push_back(*found);
        }
        return all;
    }

    // Unpins each of `leaving`, and after each admits and pins more of `wanted`, from the front: as
    // many as there is room for, which grows by `gains` of those that leave.
    std::vector<Admitted> exchange(std::int64_t layer, const Experts& leaving, const Experts& gains,
                                   const Experts& wanted, std::int64_t room) {
        require(leaving.size() == gains.size(), "a gain for each that leaves");
        const Counted working;
        std::vector<Admitted> all;
        for (std::size_t i = 0; i < leaving.size(); ++i) {
            cache_.unpin({layer, leaving[i]});
            room += gains[i];
            while (room > 0 && all.size() < wanted.size()) {
                const Key key{layer, wanted[all.size()]};
                const auto found = admitted(key, std::nullopt);
                if (!found) break;
                cache_.pin(key);
                all.push_back(*found);
                --room;
            }
        }
        return all;
    }

    void pin_all(std::int64_t layer, const Experts& experts) {
        const Counted working;
        for (const std::int64_t expert : experts) cache_.pin({layer, expert});
    }

    void unpin_all(std::int64_t layer, const Experts& experts) {
        const Counted working;
        for (const std::int64_t expert : experts) cache_.unpin({layer, expert});
    }

    void seed(const Array<const double, nb::ndim<2>>& shares) {
        require(reinterpret_cast<std::uintptr_t>(shares.data()) % alignof(double) == 0,
                "arrays of float64 must be aligned to 8 bytes");
        const Counted working;
        cache_.seed(std::span(shares.data(), shares.size()), shares.shape(1));
    }

    Slots retire(std::int64_t count, std::int64_t least) {
        const Counted working;
        return cache_.retire(count, least);
    }

    void tell(const Array<std::int32_t, nb::ndim<2>>& places) {
        require(reinterpret_cast<std::uintptr_t>(places.data()) % alignof(std::int32_t) == 0,
                "arrays of int32 must be aligned to 4 bytes");
        cache_.tell(std::span(places.data(), places.size()), places.shape(1));
        told_ = places;
    }

    void reveal_all(std::int64_t layer, const Experts& experts) {
        for (const std::int64_t expert : experts) cache_.reveal({layer, expert});
    }

    Cache& policy() { return cache_; }
    const Cache& policy() const { return cache_; }

private:
    std::optional<Admitted> admitted(Key key, std::optional<double> chance) {
        const std::optional<Admission> found = cache_.admit(key, chance);
        if (!found) return std::nullopt;
        const Key evicted = found->evicted.value_or(Key{-1, -1});
        return Admitted{found->slot, evicted.layer, evicted.expert};
    }

    Cache cache_;
    std::optional<Array<std::int32_t, nb::ndim<2>>> told_;  // kept alive
};

}  // namespace

void bind_cache(nb::module_& module) {
    nb::class_<PythonCache>(module, "Cache")
        .def(nb::init<std::int64_t, std::int64_t, std::int64_t>(), "slots"_a, "layers"_a, "top_k"_a)
        .def_prop_ro("slots", [](const PythonCache& self) { return self.policy().slots(); })
        .def_prop_ro("layers", [](const PythonCache& self) { return self.policy().layers(); })
        .def_prop_ro("free", [](const PythonCache& self) { return self.policy().free(); })
        .def_prop_ro("pinned", [](const PythonCache& self) { return self.policy().pinned(); })
        .def(
            "is_pinned",
            [](const PythonCache& self, std::int64_t layer, std::int64_t expert) {
                return self.policy().is_pinned({layer, expert});
            },
            "layer"_a, "expert"_a)
        .def("__len__", [](const PythonCache& self) { return self.policy().size(); })
        .def(
            "resident",
            [](const PythonCache& self, std::int64_t layer) {
                return self.policy().resident(layer);
            },
            "layer"_a)
        .def("lookup", &PythonCache::lookup, "layer"_a, "expert"_a)
        .def("slot", &PythonCache::slot, "layer"_a, "expert"_a)
        .def("admit", &PythonCache::admit, "layer"_a, "expert"_a, "chance"_a.none())
        .def("lookup_all", &PythonCache::lookup_all, "layer"_a, "experts"_a)
        .def("sweep", &PythonCache::sweep, "layer"_a, "experts"_a, "rows"_a.noconvert(), "tokens"_a)
        .def("slots_of", &PythonCache::slots_of, "layer"_a, "experts"_a)
        .def("admit_all", &PythonCache::admit_all, "layer"_a, "experts"_a, "chances"_a.none())
        .def("exchange", &PythonCache::exchange, "layer"_a, "leaving"_a, "gains"_a, "wanted"_a,
             "room"_a)
        .def("pin_all", &PythonCache::pin_all, "layer"_a, "experts"_a)
        .def("unpin_all", &PythonCache::unpin_all, "layer"_a, "experts"_a)
        .def("tell", &PythonCache::tell, "places"_a.noconvert())
        .def("reveal_all", &PythonCache::reveal_all, "layer"_a, "experts"_a)
        .def_prop_rw(
            "sealed", [](const PythonCache& self) { return self.policy().sealed(); },
            [](PythonCache& self, bool sealed) { self.policy().seal(sealed); })
        .def("reserve", [](PythonCache& self) { return self.policy().reserve(); })
        .def(
            "unreserve",
            [](PythonCache& self, std::int32_t slot) { self.policy().unreserve(slot); }, "slot"_a)
        .def(
            "place",
            [](PythonCache& self, std::int64_t layer, std::int64_t expert, std::int32_t slot) {
                self.policy().place({layer, expert}, slot);
            },
            "layer"_a, "expert"_a, "slot"_a)
        .def("seed", &PythonCache::seed, "shares"_a.noconvert())
        .def("retire", &PythonCache::retire, "count"_a, "least"_a)
        .def(
            "restore", [](PythonCache& self, const Slots& slots) { self.policy().restore(slots); },
            "slots"_a)
        .def(
            "pin",
            [](PythonCache& self, std::int64_t layer, std::int64_t expert) {
                self.policy().pin({layer, expert});
            },
            "layer"_a, "expert"_a)
        .def(
            "unpin",
            [](PythonCache& self, std::int64_t layer, std::int64_t expert) {
                self.policy().unpin({layer, expert});
            },
            "layer"_a, "expert"_a)
        .def(
            "drop",
            [](PythonCache& self, std::int64_t layer, std::int64_t expert) {
                return self.policy().drop({layer, expert});
            },
            "layer"_a, "expert"_a);
}

}  // namespace flashmoe::bindings
