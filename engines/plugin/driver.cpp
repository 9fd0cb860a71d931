#include "driver.h"

#include <dlfcn.h>

#include "log.h"

namespace dycoke {

namespace {

template <class Function>
void find(void* library, char const* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    throw Error(std::string("libcuda.so.1 has no ") + name + ": the driver is too old");
  }
}

Driver load() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw Error(std::string("no CUDA driver: ") + dlerror());
  }
  Driver found;
#define DYCOKE_TEXT(name) #name
#define DYCOKE_FIND(name) find(library, DYCOKE_TEXT(name), found.name);
  DYCOKE_DRIVER_FUNCTIONS(DYCOKE_FIND)
#undef DYCOKE_FIND
#undef DYCOKE_TEXT
  found.param_info =
      reinterpret_cast<decltype(found.param_info)>(dlsym(library, "cuFuncGetParamInfo"));
  return found;
}

}  // namespace

Driver const& driver() {
  static Driver const loaded = load();  // a throw leaves it unset: the next call tries again
  return loaded;
}

void check(CUresult status, char const* what) {
  if (status == CUDA_SUCCESS) {
    return;
  }
  char const* name = nullptr;
  driver().cuGetErrorName(status, &name);
  throw Error(std::string(what) + ": " + (name != nullptr ? name : "unknown error") + " (" +
              std::to_string(static_cast<int>(status)) + ")");
}

CUcontext current_context() {
  CUcontext context = nullptr;
  check(driver().cuCtxGetCurrent(&context), "cuCtxGetCurrent");
  if (context == nullptr) {
    throw Error("the calling thread has no CUDA context");
  }
  return context;
}

int current_sm() {
  CUdevice device = 0;
  int major = 0, minor = 0;
  check(driver().cuCtxGetDevice(&device), "cuCtxGetDevice");
  check(driver().cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device),
        "cuDeviceGetAttribute");
  check(driver().cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device),
        "cuDeviceGetAttribute");
  return 10 * major + minor;
}

}  // namespace dycoke
