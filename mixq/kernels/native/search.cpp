#include "search.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "context.h"
#include "cpu.h"
#include "target.h"

#define MIXQ_INLINE_LAMBDA __attribute__((always_inline))

namespace mixq {
namespace {

// As in scale_search.py, where each is explained.
constexpr double kStartScales[] = {0.80, 0.87, 0.94, 1.01, 1.08, 1.15};
constexpr int kFirstRowStep = 127, kLastRowStep = 90;
constexpr float kRoundingLoss = 1.01f;
constexpr float kTiny = 0x1p-40f;
constexpr float kBfloat16Max = 0x1.fep127f, kFloat16Max = 65504.0f;
constexpr float kRowScaleCeiling = static_cast<float>(0x1.fep127 / (128 * 127));

constexpr int kMaxGroup = 128;
constexpr int kMaxLanes = 16;

// The values of an nl4 table and the points half-way between them, where the larger value begins.
struct Table {
    explicit Table(const int8_t* table) {
        for (int i = 0; i < 16; ++i) {
            value[i] = table[i];
            const float size = value[i] < 0 ? -value[i] : value[i];
            if (size > limit) limit = size;
        }
        for (int i = 0; i < 15; ++i) midpoint[i] = (value[i] + value[i + 1]) / 2;
    }
    alignas(64) float value[16];
    float midpoint[15];
    float limit = 0;
};

// A row of a matrix and what a search keeps of it, in memory that the thread's next SearchRow takes over.
struct SearchRow {
    explicit SearchRow(const MixqSource& source);  // all zeros; throws std::bad_alloc

    int g;                      // weights in a group
    int64_t groups;
    uint8_t order[kMaxGroup];   // order[i] is i with its bits reversed, for i below g, a power of two
    float* plain;               // the weights in order
    float* w;                   // the weights with groups in lanes: [blocks][g][kLanes]; one block for integers
    float* importance;          // of the columns, laid out as all blocks of w
    // For each group:
    float *positive, *negative;  // best scale of each sign
    float *energy, *error;       // sum of squares, of weights and of what was lost
    float *q, *trial_q;          // int8 scales
    float* power;                // the power of two that was taken out
    double* sums;                // three rows
};

SearchRow::SearchRow(const MixqSource& source) : g(source.group_size), groups(source.columns / g) {
    for (int i = 0; i < g; ++i) {
        int reversed = 0;
        for (int bit = 1, mirror = g / 2; bit < g; bit *= 2, mirror /= 2) reversed |= i & bit ? mirror : 0;
        order[i] = static_cast<uint8_t>(reversed);
    }
    static thread_local Workspace workspace;
    const int64_t padded = (groups + kMaxLanes - 1) / kMaxLanes * kMaxLanes, weights = padded * g;
    const int64_t bytes = (3 * weights + 7 * padded) * 4 + 3 * padded * 8;
    Cutter memory(workspace.get(bytes));
    std::memset(workspace.get(bytes), 0, static_cast<size_t>(bytes));
    for (float** part : {&plain, &w, &importance}) *part = memory.floats(weights);
    for (float** part : {&positive, &negative, &energy, &error, &q, &trial_q, &power}) *part = memory.floats(padded);
    sums = reinterpret_cast<double*>(memory.cut(3 * padded * 8));
}

struct SearchKernels {
    void (*nl4)(const MixqSource& source, const Table& table, const SearchRow& row, uint8_t* codes, int8_t* scale,
                float* row_scale, const MixqLoss& loss);
    void (*w4)(const MixqSource& source, int scale_type, const SearchRow& row, uint8_t* codes, uint16_t* scale,
               const MixqLoss& loss);
    decltype(w4) w8;
};

#define MIXQ_KERNELS "search.inc"
#define MIXQ_PORTABLE "simd_fours.inc"
#include "every_isa.inc"

// Check the source and call `search(kernels, row)`.
template <class Search>
int run_search(int isa, const MixqSource& source, const MixqLoss& loss, const Search& search) {
    const int g = source.group_size;
    const bool valid = supports(isa) && (g == 16 || g == 32 || g == 64 || g == 128) && source.rows > 0 &&
                       source.columns > 0 && source.columns % g == 0 && source.type >= MIXQ_FLOAT32 &&
                       source.type <= MIXQ_FLOAT16;
    if (!valid) return MIXQ_SEARCH_BAD_ARGUMENT;
    *loss.groups = 0;
    try {
        search(kernels_of(isa), SearchRow(source));
    } catch (const std::bad_alloc&) {
        return MIXQ_SEARCH_NO_MEMORY;
    }
    return MIXQ_SEARCH_DONE;
}

}  // namespace
}  // namespace mixq

int mixq_search_nl4(int isa, const MixqSource* source, const int8_t* table, uint8_t* codes, int8_t* scale,
                    float* row_scale, const MixqLoss* loss) {
    using namespace mixq;
    return run_search(isa, *source, *loss, [&](const SearchKernels& kernels, const SearchRow& row) {
        kernels.nl4(*source, Table(table), row, codes, scale, row_scale, *loss);
    });
}

int mixq_search_integers(int isa, const MixqSource* source, int bits, int scale_type, uint8_t* codes, uint16_t* scale,
                         const MixqLoss* loss) {
    using namespace mixq;
    const bool valid_types = (bits == 4 || bits == 8) && (scale_type == MIXQ_BFLOAT16 || scale_type == MIXQ_FLOAT16);
    if (!valid_types) return MIXQ_SEARCH_BAD_ARGUMENT;
    return run_search(isa, *source, *loss, [&](const SearchKernels& kernels, const SearchRow& row) {
        (bits == 4 ? kernels.w4 : kernels.w8)(*source, scale_type, row, codes, scale, *loss);
    });
}
