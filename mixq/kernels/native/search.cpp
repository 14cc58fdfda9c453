#include "search.h"

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <new>

#include "cpu.h"
#include "target.h"

#define MIXQ_INLINE inline __attribute__((always_inline))
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

// What a search keeps of one row; all but `plain` and `w` have an entry for each group.
struct Row {
    float* plain;                // the weights in order
    float* w;                    // the weights with groups in lanes: [blocks][g][kLanes]; one block for integers
    float* importance;           // of the columns, laid out as all blocks of w
    float *positive, *negative;  // best scale of each sign
    float *energy, *error;       // sum of squares, of weights and of what was lost
    float *q, *trial_q;          // int8 scales
    float* power;                // the power of two that was taken out
    double* sums;                // three rows
};

// Memory for a Row; `row` is null where there is none left.
class RowMemory {
   public:
    explicit RowMemory(const MixqSource& source) {
        const int64_t groups = (source.columns / source.group_size + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
        const int64_t weights = groups * source.group_size;
        const size_t bytes = (3 * weights + 7 * groups) * sizeof(float) + 3 * groups * sizeof(double);
        memory_ = static_cast<char*>(::operator new(bytes, kAlignment, std::nothrow));
        if (memory_ == nullptr) return;
        std::memset(memory_, 0, bytes);
        float* next = reinterpret_cast<float*>(memory_);
        auto cut = [&next](int64_t count) {
            float* part = next;
            next += count;
            return part;
        };
        row_.plain = cut(weights);
        row_.w = cut(weights);
        row_.importance = cut(weights);
        for (float** part : {&row_.positive, &row_.negative, &row_.energy, &row_.error}) *part = cut(groups);
        for (float** part : {&row_.q, &row_.trial_q, &row_.power}) *part = cut(groups);
        row_.sums = reinterpret_cast<double*>(next);
    }
    ~RowMemory() { ::operator delete(memory_, kAlignment); }
    RowMemory(const RowMemory&) = delete;
    RowMemory& operator=(const RowMemory&) = delete;

    const Row* row() const { return memory_ ? &row_ : nullptr; }

   private:
    static constexpr std::align_val_t kAlignment{64};
    char* memory_ = nullptr;
    Row row_{};
};

// order[i] is i with its bits reversed, for i below g, a power of two.
struct Order {
    explicit Order(int g) {
        for (int i = 0; i < g; ++i) {
            int reversed = 0;
            for (int bit = 1, mirror = g / 2; bit < g; bit *= 2, mirror /= 2) reversed |= i & bit ? mirror : 0;
            place[i] = static_cast<uint8_t>(reversed);
        }
    }
    uint8_t place[kMaxGroup];
};

MIXQ_INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

MIXQ_INLINE float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

// Exponents from -126 to 127.
MIXQ_INLINE float power_of_two(int exponent) { return float_of(static_cast<uint32_t>(exponent + 127) << 23); }

// The exponent that brings `largest` to 1 at least and 4 at most; 0 and denormals stay small.
MIXQ_INLINE int exponent_of(float largest) {
    const int exponent = static_cast<int>(bits_of(largest) >> 23) - 127;
    return exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
}

MIXQ_INLINE float float_of_bf16(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

// Half to even, of a finite number.
MIXQ_INLINE uint16_t round_to_bf16(float x) {
    const uint32_t bits = bits_of(x);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The bits, moved to a float's places, are short of the difference of the two exponent biases, 2**112; the product is
// exact for denormals too.
MIXQ_INLINE float float_of_f16(uint16_t x) {
    const float size = float_of(static_cast<uint32_t>(x & 0x7fff) << 13) * 0x1p112f;
    const uint32_t special = (x & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;  // infinite or NaN
    return float_of(bits_of(size) | special | static_cast<uint32_t>(x & 0x8000) << 16);
}

// Half to even, of a number of at most 65504.
MIXQ_INLINE uint16_t round_to_f16(float x) {
    const uint32_t sign = (bits_of(x) >> 16) & 0x8000, size = bits_of(x) & 0x7fffffff;
    if (size < bits_of(0x1p-14f)) {  // a denormal: adding 0.5 leaves the multiples of 2**-24 and rounds to them
        return static_cast<uint16_t>(sign | (bits_of(float_of(size) + 0.5f) - bits_of(0.5f)));
    }
    return static_cast<uint16_t>(sign | ((size + 0xfff + ((size >> 13) & 1) - (uint32_t{112} << 23)) >> 13));
}

namespace portable {
#include "search_portable.inc"
#include "search.inc"
}  // namespace portable

#if MIXQ_X86
MIXQ_BEGIN_AVX2
namespace avx2 {
#include "search_avx2.inc"
#include "search.inc"
}  // namespace avx2
MIXQ_END

MIXQ_BEGIN_AVX512
namespace avx512 {
#include "search_avx512.inc"
#include "search.inc"
}  // namespace avx512
MIXQ_END
#endif

struct Kernels {
    decltype(&portable::search_nl4) nl4;
    decltype(&portable::search_integers<4>) w4, w8;
};

Kernels kernels(int isa) {
#if MIXQ_X86
    if (isa >= MIXQ_ISA_AVX512) return {avx512::search_nl4, avx512::search_integers<4>, avx512::search_integers<8>};
    if (isa >= MIXQ_ISA_AVX2) return {avx2::search_nl4, avx2::search_integers<4>, avx2::search_integers<8>};
#endif
    (void)isa;
    return {portable::search_nl4, portable::search_integers<4>, portable::search_integers<8>};
}

bool valid(int isa, const MixqSource& source) {
    const int g = source.group_size;
    return supports(isa) && (g == 16 || g == 32 || g == 64 || g == 128) && source.rows > 0 && source.columns > 0 &&
           source.columns % g == 0 && source.type >= MIXQ_FLOAT32 && source.type <= MIXQ_FLOAT16;
}

}  // namespace
}  // namespace mixq

int mixq_search_nl4(int isa, const MixqSource* source, const int8_t* table, uint8_t* codes, int8_t* scale,
                    float* row_scale, const MixqLoss* loss) {
    using namespace mixq;
    if (!valid(isa, *source)) return MIXQ_SEARCH_BAD_ARGUMENT;
    const RowMemory memory(*source);
    if (memory.row() == nullptr) return MIXQ_SEARCH_NO_MEMORY;
    *loss->groups = 0;
    const Order order(source->group_size);
    kernels(isa).nl4(*source, Table(table), order.place, *memory.row(), codes, scale, row_scale, *loss);
    return MIXQ_SEARCH_DONE;
}

int mixq_search_integers(int isa, const MixqSource* source, int bits, int scale_type, uint8_t* codes, uint16_t* scale,
                         const MixqLoss* loss) {
    using namespace mixq;
    const bool valid_types = (bits == 4 || bits == 8) && (scale_type == MIXQ_BFLOAT16 || scale_type == MIXQ_FLOAT16);
    if (!valid(isa, *source) || !valid_types) return MIXQ_SEARCH_BAD_ARGUMENT;
    const RowMemory memory(*source);
    if (memory.row() == nullptr) return MIXQ_SEARCH_NO_MEMORY;
    *loss->groups = 0;
    const Order order(source->group_size);
    const Kernels found = kernels(isa);
    (bits == 4 ? found.w4 : found.w8)(*source, scale_type, order.place, *memory.row(), codes, scale, *loss);
    return MIXQ_SEARCH_DONE;
}
