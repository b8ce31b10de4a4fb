// Attention over keys and values held as f32: one kernel a head_dim, and for up to 8 or (wide) 16
// query heads a kv head. See attention.cuh.

#include "attention.cuh"

KERNEL(256)
attend_64(const Attention* layer, const Held* held, const float* inputs, const int* position,
          float* out, float2* ends) {
    attend<kF32, 64, false>(*layer, *held, inputs, *position, out, ends);
}

KERNEL(256)
attend_64_wide(const Attention* layer, const Held* held, const float* inputs, const int* position,
               float* out, float2* ends) {
    attend<kF32, 64, true>(*layer, *held, inputs, *position, out, ends);
}

KERNEL(256)
attend_128(const Attention* layer, const Held* held, const float* inputs, const int* position,
           float* out, float2* ends) {
    attend<kF32, 128, false>(*layer, *held, inputs, *position, out, ends);
}

KERNEL(256)
attend_128_wide(const Attention* layer, const Held* held, const float* inputs, const int* position,
                float* out, float2* ends) {
    attend<kF32, 128, true>(*layer, *held, inputs, *position, out, ends);
}

KERNEL(256)
attend_256(const Attention* layer, const Held* held, const float* inputs, const int* position,
           float* out, float2* ends) {
    attend<kF32, 256, false>(*layer, *held, inputs, *position, out, ends);
}

KERNEL(256)
attend_256_wide(const Attention* layer, const Held* held, const float* inputs, const int* position,
                float* out, float2* ends) {
    attend<kF32, 256, true>(*layer, *held, inputs, *position, out, ends);
}
