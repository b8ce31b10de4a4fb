// The native code without Python, for a processor that this machine only imitates.
//
// Standard input is a series of calls: a line of text each, the function's name and its words,
// then the bytes of its arrays in the order in which the function takes them. Standard output
// gets the bytes of each result in turn, nothing between them. tests/native/imitated.py writes
// the one and reads the other.
//
// Each array ends where a page begins that may not be touched, so a load past its end is a crash.
//
// A function more is three things: a `void name(Call&)` here, which takes its words and arrays
// from the call and gives its result to it; its name in kFunctions; and the method of `Program`
// in imitated.py that writes such a call. New sources of native/ are in the library already.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "../../native/checksum.h"
#include "../../native/dispatch.h"
#include "../../native/io.h"
#include "../../native/kernels.h"
#include "../../native/panels.h"
#include "../../native/touch.h"

namespace {

using namespace flashmoe;

// Memory that ends before a page without access.
class Walled {
public:
    explicit Walled(std::size_t bytes) : bytes_(bytes) {
        const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        const std::size_t whole = (bytes + page - 1) / page * page;
        mapped_ = whole + page;
        void* at =
            mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) throw std::runtime_error("mmap failed");
        base_ = static_cast<unsigned char*>(at);
        if (mprotect(base_ + whole, page, PROT_NONE) != 0)
            throw std::runtime_error("mprotect failed");
        data_ = base_ + (whole - bytes);
    }
    ~Walled() { munmap(base_, mapped_); }
    Walled(const Walled&) = delete;
    Walled& operator=(const Walled&) = delete;

    unsigned char* data() const { return data_; }
    float* floats() const { return reinterpret_cast<float*>(data_); }
    std::size_t size() const { return bytes_; }

private:
    std::size_t bytes_, mapped_ = 0;
    unsigned char *base_ = nullptr, *data_ = nullptr;
};

class Call {
public:
    explicit Call(const std::string& line) : words_(line) {}

    template <class Type>
    Type take() {
        Type value;
        if (!(words_ >> value)) throw std::runtime_error("a call lacks a word");
        return value;
    }

    std::size_t size() { return take<std::size_t>(); }

    // Room that lives as long as the call.
    Walled& room(std::size_t bytes) { return arrays_.emplace_back(bytes); }

    Walled& array(std::size_t bytes) {
        Walled& array = room(bytes);
        std::cin.read(reinterpret_cast<char*>(array.data()), static_cast<std::streamsize>(bytes));
        if (!std::cin) throw std::runtime_error("a call lacks bytes");
        return array;
    }

    void give(const void* data, std::size_t bytes) {
        std::cout.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    }

private:
    std::istringstream words_;
    std::list<Walled> arrays_;
};

const InstructionSet& take_set(Call& call) {
    const auto name = call.take<std::string>();
    for (const InstructionSet& set : instruction_sets())
        if (name == set.name) return set;
    throw std::runtime_error("no instruction set " + name);
}

// `affine SCALAR BITS GROUP OUT IN` with weight, scales, biases, or `plain SCALAR OUT IN`.
Matrix take_matrix(Call& call) {
    const bool affine = call.take<std::string>() == "affine";
    const auto scalar = static_cast<Scalar>(call.take<int>());
    const int bits = affine ? call.take<int>() : 0, group = affine ? call.take<int>() : 0;
    const std::size_t out = call.size(), in = call.size();
    if (!affine) return PlainMatrix{call.array(out * in * size_of(scalar)).data(), scalar, out, in};
    const std::size_t each = out * (in / static_cast<std::size_t>(group)) * size_of(scalar);
    const void* weight = call.array(out * in / 8 * static_cast<std::size_t>(bits)).data();
    const void* scales = call.array(each).data();
    return AffineMatrix{weight, scales, call.array(each).data(), scalar, bits, group, out, in};
}

void sets(Call& call) {
    std::string names;
    for (const InstructionSet& set : instruction_sets()) names += std::string(set.name) + '\n';
    const std::uint64_t length = names.size();
    call.give(&length, sizeof length);
    call.give(names.data(), names.size());
}

// SET THREADS ROWS MATRIX, then x.
void matmul(Call& call) {
    const InstructionSet& set = take_set(call);
    const int threads = call.take<int>();
    const std::size_t rows = call.size();
    const Matrix matrix = take_matrix(call);
    const auto* affine = std::get_if<AffineMatrix>(&matrix);
    const std::size_t in = affine ? affine->in : std::get<PlainMatrix>(matrix).in;
    const float* x = call.array(rows * in * sizeof(float)).floats();
    const Walled& y = call.room(rows * out_of(matrix) * sizeof(float));
    if (affine != nullptr)
        matmul_affine(set, x, rows, *affine, y.floats(), threads);
    else
        matmul_plain(set, x, rows, std::get<PlainMatrix>(matrix), y.floats(), threads);
    call.give(y.data(), y.size());
}

// SET THREADS ROWS MATRIX, then x: in the form for many rows.
void panels(Call& call) {
    const InstructionSet& set = take_set(call);
    const int threads = call.take<int>();
    const std::size_t rows = call.size();
    const Matrix matrix = take_matrix(call);
    const float* x = call.array(rows * in_of(matrix) * sizeof(float)).floats();
    const Walled& y = call.room(rows * out_of(matrix) * sizeof(float));
    project_panels(set, x, rows, {{&matrix, y.floats()}}, threads);
    call.give(y.data(), y.size());
}

// SET THREADS GATE UP DOWN, then one token's x.
void expert(Call& call) {
    const InstructionSet& set = take_set(call);
    const int threads = call.take<int>();
    const Matrix gate = take_matrix(call), up = take_matrix(call), down = take_matrix(call);
    const std::size_t bytes = out_of(down) * sizeof(float);
    const float* x = call.array(bytes).floats();
    const Walled& y = call.room(bytes);
    const Expert expert{gate, up, down};
    experts(set, x, {{&expert, y.floats()}}, threads);
    call.give(y.data(), y.size());
}

// BYTES, then so many.
void checksum(Call& call) {
    const Walled& data = call.array(call.size());
    const std::uint64_t sum = xxh3_64(data.data(), data.size());
    call.give(&sum, sizeof sum);
}

// THREADS BYTES, then so many.
void plain_read(Call& call) {
    const int threads = call.take<int>();
    const Walled& data = call.array(call.size());
    const std::uint64_t all = touch(data.data(), data.size(), threads);
    call.give(&all, sizeof all);
}

// PATH OFFSET BYTES CHECKSUM; the code and the detail come before the bytes.
void read_file(Call& call) {
    Reader reader(2);
    const int file = reader.open(call.take<std::string>(), true, 0);
    const auto offset = call.take<std::uint64_t>();
    const Walled& into = call.room(call.size());
    const auto wanted = call.take<std::uint64_t>();
    const ReadStatus status =
        reader.wait(reader.submit(file, offset, {into.data(), into.size()}, wanted, true));
    const auto code = static_cast<std::uint64_t>(status.code);
    call.give(&code, sizeof code);
    call.give(&status.detail, sizeof status.detail);
    call.give(into.data(), into.size());
}

using Function = void (*)(Call&);

constexpr std::pair<const char*, Function> kFunctions[] = {
    {"sets", sets},        {"matmul", matmul},  {"expert", expert}, {"checksum", checksum},
    {"touch", plain_read}, {"read", read_file}, {"panels", panels},
};

void answer(const std::string& line) {
    Call call(line);
    const auto name = call.take<std::string>();
    for (const auto& [known, function] : kFunctions)
        if (name == known) return function(call);
    throw std::runtime_error("no function " + name);
}

}  // namespace

int main() {
    std::ios::sync_with_stdio(false);
    try {
        for (std::string line; std::getline(std::cin, line);) answer(line);
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return EXIT_FAILURE;
    }
    return std::cout.flush() ? EXIT_SUCCESS : EXIT_FAILURE;
}
