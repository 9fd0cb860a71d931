// A driver without a GPU, as libcuda.so.1: memory is the host's, modules are read for what a real
// driver would check, launches are handed to a callback. fake_* functions are the tests' controls.
#include <cuda.h>
#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace {

struct Function {
  std::string name;
  unsigned threads = 0;
  std::vector<std::size_t> sizes;  // of the parameters, in order
};

struct Module {
  std::map<std::string, Function> functions;
};

using LaunchCallback = int (*)(char const* entry, unsigned const* grid, int count,
                               unsigned char const* const* values, std::size_t const* sizes);

int sm = 90;
std::size_t total_memory = 1 << 20;
bool capturing = false;
int forbidden = 0;  // calls that would break the recording of a graph
int modules_loaded = 0, allocations = 0;
std::string failing;
std::map<char const*, std::size_t> device;  // ranges that are "device memory"
LaunchCallback on_launch = nullptr;

CUresult status(char const* name, bool ends_capture = false) {
  if (ends_capture && capturing) {
    ++forbidden;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  if (failing == name) {
    failing.clear();
    return CUDA_ERROR_LAUNCH_FAILED;
  }
  return CUDA_SUCCESS;
}

unsigned number_behind(std::string const& text, std::string const& word, std::size_t from = 0) {
  std::size_t const place = text.find(word, from);
  return place == std::string::npos
             ? 0
             : static_cast<unsigned>(std::atoi(text.c_str() + place + word.size()));
}

Module read_ptx(std::string const& text) {
  Module module;
  std::size_t place = text.find(".entry ");
  Function function;
  std::size_t const open = text.find('(', place), close = text.find(')', place);
  function.name = text.substr(place + 7, open - place - 7);
  for (place = text.find(".param .", open); place < close; place = text.find(".param .", place)) {
    place += 8;
    function.sizes.push_back(number_behind(text.substr(place + 1, 2), "") / 8);
  }
  function.threads = number_behind(text, ".reqntid ", close);
  module.functions[function.name] = function;
  return module;
}

CUresult read_cubin(char const* data, Module& module) {
  auto const* header = reinterpret_cast<Elf64_Ehdr const*>(data);
  auto const* sections = reinterpret_cast<Elf64_Shdr const*>(data + header->e_shoff);
  int const of_image = header->e_ident[8] >= 8 ? (header->e_flags >> 8 & 0xff)
                                               : (header->e_flags & 0xff);
  bool const runs = of_image == sm || (sm < 90 && of_image / 10 == sm / 10 && of_image < sm);
  if (!runs) {
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  char const* names = data + sections[header->e_shstrndx].sh_offset;
  for (int i = 0; i < header->e_shnum; ++i) {
    std::string const name = names + sections[i].sh_name;
    if (name.rfind(".nv.info.", 0) != 0) {
      continue;
    }
    Function function;
    function.name = name.substr(9);
    char const* place = data + sections[i].sh_offset;
    char const* end = place + sections[i].sh_size;
    while (place < end) {
      std::uint8_t const form = static_cast<std::uint8_t>(place[0]);
      std::uint8_t const attribute = static_cast<std::uint8_t>(place[1]);
      std::uint16_t size = 0;
      std::memcpy(&size, place + 2, 2);
      place += 4;
      if (form != 4) {
        continue;  // the value is in the header
      }
      if (attribute == 0x17) {  // a parameter
        std::uint16_t ordinal = 0;
        std::uint32_t packed = 0;
        std::memcpy(&ordinal, place + 4, 2);
        std::memcpy(&packed, place + 8, 4);
        function.sizes.resize(std::max<std::size_t>(function.sizes.size(), ordinal + 1U));
        function.sizes[ordinal] = packed >> 18;
      } else if (attribute == 0x10) {  // threads of a block
        std::memcpy(&function.threads, place, 4);
      }
      place += size;
    }
    module.functions[function.name] = function;
  }
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

void fake_reset(int sm_, std::size_t memory) {
  sm = sm_;
  total_memory = memory;
  capturing = false;
  forbidden = modules_loaded = allocations = 0;
  failing.clear();
}
void fake_fail(char const* name) { failing = name; }
void fake_capture(int on) { capturing = on != 0; }
int fake_forbidden() { return forbidden; }
int fake_modules() { return modules_loaded; }
int fake_allocations() { return allocations; }
void fake_on_launch(LaunchCallback callback) { on_launch = callback; }
void fake_mark_device(void const* begin, std::size_t bytes) {
  device[static_cast<char const*>(begin)] = bytes;
}
void fake_unmark_device(void const* begin) { device.erase(static_cast<char const*>(begin)); }

CUresult cuGetErrorName(CUresult error, char const** name) {
  *name = error == CUDA_ERROR_NO_BINARY_FOR_GPU ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
          : error == CUDA_ERROR_NOT_FOUND       ? "CUDA_ERROR_NOT_FOUND"
          : error == CUDA_ERROR_LAUNCH_FAILED   ? "CUDA_ERROR_LAUNCH_FAILED"
                                                : "CUDA_ERROR_INVALID_VALUE";
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = reinterpret_cast<CUcontext>(std::uintptr_t{0x1000} + static_cast<unsigned>(sm));
  return status("cuCtxGetCurrent");
}
CUresult cuCtxGetDevice(CUdevice* out) {
  *out = 0;
  return status("cuCtxGetDevice");
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? sm / 10 : sm % 10;
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(std::size_t* bytes, CUdevice) {
  *bytes = total_memory;
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* out, void const* data) {
  if (CUresult const error = status("cuModuleLoadData", true)) {
    return error;
  }
  auto* module = new Module;
  if (std::memcmp(data, "\177ELF", 4) == 0) {
    if (CUresult const error = read_cubin(static_cast<char const*>(data), *module)) {
      delete module;
      return error;
    }
  } else {
    *module = read_ptx(static_cast<char const*>(data));
  }
  ++modules_loaded;
  *out = reinterpret_cast<CUmodule>(module);
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* out, CUmodule module, char const* name) {
  auto& functions = reinterpret_cast<Module*>(module)->functions;
  auto found = functions.find(name);
  if (found == functions.end()) {
    return CUDA_ERROR_NOT_FOUND;
  }
  *out = reinterpret_cast<CUfunction>(&found->second);
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) {
  return status("cuFuncSetAttribute", true);
}
CUresult cuFuncGetParamInfo(CUfunction function, std::size_t index, std::size_t* offset,
                            std::size_t* size) {
  auto const& sizes = reinterpret_cast<Function*>(function)->sizes;
  *offset = 0;
  if (index >= sizes.size()) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *size = sizes[index];
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction handle, unsigned x, unsigned y, unsigned z, unsigned threads,
                        unsigned one, unsigned another, unsigned, CUstream, void** values, void**) {
  auto const& function = *reinterpret_cast<Function*>(handle);
  if (CUresult const error = status("cuLaunchKernel")) {
    return error;
  }
  if (threads != function.threads || one != 1 || another != 1 || x * y * z == 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  unsigned const grid[] = {x, y, z};
  std::vector<unsigned char const*> bytes;
  for (std::size_t i = 0; i < function.sizes.size(); ++i) {
    bytes.push_back(static_cast<unsigned char const*>(values[i]));
  }
  int const failed = on_launch != nullptr
                         ? on_launch(function.name.c_str(), grid, static_cast<int>(bytes.size()),
                                     bytes.data(), function.sizes.data())
                         : 0;
  return failed != 0 ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr* out, std::size_t bytes) {
  if (CUresult const error = status("cuMemAlloc", true)) {
    return error;
  }
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(memory, 0xa5, bytes);
  device[static_cast<char const*>(memory)] = bytes;
  ++allocations;
  *out = reinterpret_cast<CUdeviceptr>(memory);
  return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr memory) {
  if (CUresult const error = status("cuMemFree", true)) {
    return error;
  }
  device.erase(reinterpret_cast<char const*>(memory));
  std::free(reinterpret_cast<void*>(memory));
  --allocations;
  return CUDA_SUCCESS;
}
CUresult cuMemHostRegister(void*, std::size_t, unsigned) {
  return status("cuMemHostRegister", true);
}
CUresult cuMemHostUnregister(void*) { return status("cuMemHostUnregister", true); }
CUresult cuMemsetD8(CUdeviceptr memory, unsigned char value, std::size_t bytes) {
  if (CUresult const error = status("cuMemsetD8", true)) {
    return error;
  }
  std::memset(reinterpret_cast<void*>(memory), value, bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr memory, unsigned char value, std::size_t bytes, CUstream) {
  std::memset(reinterpret_cast<void*>(memory), value, bytes);
  return status("cuMemsetD8Async");
}
CUresult cuMemcpyDtoHAsync(void* out, CUdeviceptr memory, std::size_t bytes, CUstream) {
  std::memcpy(out, reinterpret_cast<void const*>(memory), bytes);
  return status("cuMemcpyDtoHAsync");
}
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute, CUdeviceptr pointer) {
  auto const* place = reinterpret_cast<char const*>(pointer);
  for (auto const& [begin, bytes] : device) {
    if (place >= begin && place < begin + bytes) {
      *static_cast<unsigned*>(value) = CU_MEMORYTYPE_DEVICE;
      return CUDA_SUCCESS;
    }
  }
  return CUDA_ERROR_INVALID_VALUE;
}
}  // extern "C"
