// The CUDA driver, found at run time: the library links to nothing of NVIDIA's, so it can be built
// and loaded where there is no GPU, and it takes the driver that the host process already uses.
#pragma once

#include <cuda.h>

#include <string>

// cuda.h renames functions by macro (cuMemAlloc is cuMemAlloc_v2). The names below pass through the
// preprocessor once more, so members and looked-up symbols are the renamed ones.
#define DYCOKE_DRIVER_FUNCTIONS(X) \
  X(cuGetErrorName)                \
  X(cuCtxGetCurrent)               \
  X(cuCtxGetDevice)                \
  X(cuDeviceGetAttribute)          \
  X(cuDeviceTotalMem)              \
  X(cuModuleLoadData)              \
  X(cuModuleGetFunction)           \
  X(cuFuncSetAttribute)            \
  X(cuLaunchKernel)                \
  X(cuMemAlloc)                    \
  X(cuMemFree)                     \
  X(cuMemHostRegister)             \
  X(cuMemHostUnregister)           \
  X(cuMemsetD8)                    \
  X(cuMemsetD8Async)               \
  X(cuMemcpyDtoHAsync)             \
  X(cuPointerGetAttribute)

namespace dycoke {

struct Driver {
#define DYCOKE_MEMBER(name) decltype(&::name) name = nullptr;
  DYCOKE_DRIVER_FUNCTIONS(DYCOKE_MEMBER)
#undef DYCOKE_MEMBER
  // From CUDA 12.4 on; null with an older driver. (function, parameter, its offset, its size)
  CUresult (*param_info)(CUfunction, size_t, size_t*, size_t*) = nullptr;
};

// Looks the driver up at the first call; never calls cuInit. Throws Error where there is none.
Driver const& driver();

// Throws Error naming `what` and the driver's name of the status, unless that is success.
void check(CUresult status, char const* what);

// The context of the calling thread. Throws Error if there is none: TensorRT has always made one.
CUcontext current_context();

// Compute capability of the current context's device as 10 * major + minor.
int current_sm();

}  // namespace dycoke
