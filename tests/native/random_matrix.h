// Random weights in every kind, in memory that ends where the data ends, and what they are in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../mixq/kernels/native/api.h"

namespace driver {

struct Random {
    std::mt19937_64 engine;
    explicit Random(uint64_t seed) : engine(seed) {}
    int64_t whole(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
    float normal() { return std::normal_distribution<float>()(engine); }
    std::vector<float> normals(int64_t count, float size = 1.0f) {
        std::vector<float> values(count);
        for (float& value : values) value = size * normal();
        return values;
    }
};

// `bytes` bytes that begin `offset` bytes after an aligned address; a sanitizer sees the first byte beyond.
class Bytes {
   public:
    Bytes(int64_t bytes, int64_t offset) : memory_(new char[bytes + offset]), offset_(offset) {}
    void* at() const { return memory_.get() + offset_; }
    template <class T>
    void set(int64_t i, T value) {
        std::memcpy(static_cast<char*>(at()) + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
    }

   private:
    std::unique_ptr<char[]> memory_;
    int64_t offset_;
};

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline uint16_t to_bf16(float x) {  // finite; half to even
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float of_bf16(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

// Small powers of two times 1 to 1 + 1023/1024: exact in float16.
inline float random_half(Random& random, uint16_t* bits) {
    const int exponent = static_cast<int>(random.whole(5, 14)), mantissa = static_cast<int>(random.whole(0, 1023));
    const bool negative = random.whole(0, 1);
    *bits = static_cast<uint16_t>(negative << 15 | exponent << 10 | mantissa);
    const float size = std::ldexp(1.0f + static_cast<float>(mantissa) / 1024.0f, exponent - 15);
    return negative ? -size : size;
}

struct Matrix {
    MixqMatrix c{};
    std::vector<double> values;  // [N, K]
    std::vector<Bytes> memory;
    double at(int64_t n, int64_t k) const { return values[n * c.columns + k]; }
};

// The kinds of the format: {kind, group size, scale type}.
struct Form {
    int kind, group, scale_type;
};

inline const std::vector<Form>& forms() {
    static const std::vector<Form> all = [] {
        std::vector<Form> made{{MIXQ_BF16, 1, 0}};
        for (int g : {16, 32, 64}) made.push_back({MIXQ_NIBBLES, g, MIXQ_SCALE_I8});
        for (int kind : {MIXQ_NIBBLES, MIXQ_BYTES})
            for (int g : {32, 64, 128})
                for (int type : {MIXQ_SCALE_BF16, MIXQ_SCALE_F16}) made.push_back({kind, g, type});
        return made;
    }();
    return all;
}

// K must be a multiple of the group size.
inline Matrix random_matrix(Random& random, const Form& form, int64_t N, int64_t K) {
    Matrix m;
    const bool plain = form.kind == MIXQ_BF16 || form.kind == MIXQ_F32;
    const int64_t g = plain ? 1 : form.group, G = K / g;
    m.c.kind = form.kind, m.c.group_size = plain ? 0 : form.group, m.c.rows = N, m.c.columns = K;
    m.c.scale_type = form.scale_type;
    m.values.resize(N * K);
    if (plain) {
        const int64_t size = form.kind == MIXQ_BF16 ? 2 : 4;
        m.memory.emplace_back(N * K * size, random.whole(0, 3));
        for (int64_t i = 0; i < N * K; ++i) {
            float value = random.normal();
            if (form.kind == MIXQ_BF16) {
                m.memory[0].set(i, to_bf16(value));
                value = of_bf16(to_bf16(value));
            } else {
                m.memory[0].set(i, value);
            }
            m.values[i] = value;
        }
        m.c.codes = m.memory[0].at();
        return m;
    }
    const bool nl4 = form.scale_type == MIXQ_SCALE_I8;
    static constexpr int8_t kTable[16] = {-123, -92, -71, -54, -39, -26, -14, -3, 9, 20, 33, 46, 61, 78, 100, 127};
    for (int i = 0; i < 16; ++i) m.c.table[i] = nl4 ? kTable[i] : static_cast<int8_t>(i - 8);
    if (nl4 && random.whole(0, 3) == 0) m.c.table[0] = -128;
    const int64_t scale_size = nl4 ? 1 : 2, row_bytes = form.kind == MIXQ_NIBBLES ? K / 2 : K;
    m.memory.emplace_back(N * row_bytes, random.whole(0, 3));
    m.memory.emplace_back(N * G * scale_size, random.whole(0, 3));
    m.memory.emplace_back(nl4 ? N * 4 : 0, random.whole(0, 3));
    std::vector<double> scales(N * G);
    for (int64_t i = 0; i < N * G; ++i) {
        const bool zero = random.whole(0, 19) == 0;
        float scale = 0;
        if (nl4) {
            const int8_t q = static_cast<int8_t>(zero ? 0 : random.whole(-127, 127));
            m.memory[1].set(i, q);
            scale = q;
        } else if (form.scale_type == MIXQ_SCALE_F16) {
            uint16_t bits = 0;
            if (!zero) scale = random_half(random, &bits);
            m.memory[1].set(i, bits);
        } else {
            scale = of_bf16(to_bf16(zero ? 0.0f : random.normal()));
            m.memory[1].set(i, to_bf16(scale));
        }
        scales[i] = scale;
    }
    for (int64_t n = 0; n < N; ++n) {
        float row_scale = 1.0f;
        if (nl4) {
            row_scale = 1e-4f * (1.0f + std::fabs(random.normal()));
            m.memory[2].set(n, row_scale);
        }
        for (int64_t k = 0; k < K; ++k) {
            int value;
            if (form.kind == MIXQ_BYTES) {
                const uint8_t byte = static_cast<uint8_t>(random.whole(0, 255));
                m.memory[0].set(n * K + k, byte);
                value = byte - 128;
            } else {
                const int64_t place = n * row_bytes + k / 2;
                const uint8_t code = static_cast<uint8_t>(random.whole(0, 15));
                uint8_t byte = k % 2 ? static_cast<const uint8_t*>(m.memory[0].at())[place] : 0;
                byte = static_cast<uint8_t>(byte | code << (k % 2 * 4));
                m.memory[0].set(place, byte);
                value = m.c.table[code];
            }
            m.values[n * K + k] = value * scales[n * G + k / g] * row_scale;
        }
    }
    m.c.codes = m.memory[0].at(), m.c.scales = m.memory[1].at();
    m.c.row_scale = nl4 ? static_cast<const float*>(m.memory[2].at()) : nullptr;
    return m;
}

// Activations as the format rounds them: to int8 per 32 inputs, to bfloat16, or not.
enum class Rounding { kInt8, kBf16, kNone };

inline std::vector<double> rounded(const float* x, int64_t K, Rounding how) {
    std::vector<double> out(x, x + K);
    if (how == Rounding::kBf16)
        for (double& value : out) value = of_bf16(to_bf16(static_cast<float>(value)));
    if (how != Rounding::kInt8) return out;
    for (int64_t begin = 0; begin < K; begin += 32) {
        const int64_t end = begin + 32 < K ? begin + 32 : K;
        float absmax = 0;
        for (int64_t k = begin; k < end; ++k) absmax = std::fmax(absmax, std::fabs(x[k]));
        const float inverse = absmax > 1e-30f ? 127.0f / absmax : 0.0f, scale = absmax > 1e-30f ? absmax / 127.0f : 0.0f;
        for (int64_t k = begin; k < end; ++k)
            out[k] = static_cast<double>(std::nearbyint(x[k] * inverse)) * scale;
    }
    return out;
}

}  // namespace driver
