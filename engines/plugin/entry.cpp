// How the plugins reach a registry: exactly one of three ways, since two would leave a dangling
// creator behind.
//   getCreators, setLoggerFinder   for hosts that load plugin libraries (IPluginRegistry::loadLibrary);
//                                  V3 alone
//   initDycokePlugins              for programs that load this library themselves
//   DYCOKE_AUTOREGISTER=1 with LD_PRELOAD   for servers that do neither (kServers)
#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <errno.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "log.h"
#include "plugin_v2.h"
#include "plugin_v3.h"

#define DYCOKE_EXPORT extern "C" __attribute__((visibility("default")))

// Read by `dycoke build` and `dycoke doctor` from the file, which they do not load. Exported, so that
// no linker drops what no code uses (zig's collects sections).
#define DYCOKE_TEXT(number) #number
#define DYCOKE_NUMBER(macro) DYCOKE_TEXT(macro)
DYCOKE_EXPORT char const dycokePluginMark[] = "dycoke-plugin abi=" DYCOKE_NUMBER(DYCOKE_PLUGIN_ABI)
    " tensorrt=" DYCOKE_NUMBER(NV_TENSORRT_MAJOR) ";";

namespace dycoke {

namespace {

using nvinfer1::IPluginCreatorInterface;

// getCreators promises that this array stays, and registries keep what is in it: never destroyed.
IPluginCreatorInterface* const* creators() {
  static IPluginCreatorInterface* const array[] = {
      new CreatorV3(score_kind()), new CreatorV3(select_kind()), new CreatorV3(rope_kind()),
      new CreatorV2(score_kind()), new CreatorV2(select_kind()), new CreatorV2(rope_kind())};
  return array;
}
constexpr std::int32_t kCreators = 6;
// getCreators gives the V3 ones alone: with others in the list, deregisterLibrary of TensorRT 10.16
// ends the process.
constexpr std::int32_t kLoadable = 3;

std::mutex mutex;
bool registered = false;

std::string soname(char const* library) {
  return std::string(library) + ".so." + std::to_string(NV_TENSORRT_MAJOR);
}

// Of the TensorRT in this process, or, with `load`, of one loaded for that.
void* tensorrt_symbol(char const* name, bool load) {
  if (void* symbol = dlsym(RTLD_DEFAULT, name)) {
    return symbol;
  }
  for (char const* library : {"libnvinfer", "libnvinfer_lean", "libnvinfer_dispatch"}) {
    if (void* handle = dlopen(soname(library).c_str(), RTLD_LAZY | RTLD_NOLOAD)) {
      return dlsym(handle, name);
    }
  }
  if (!load) {
    return nullptr;
  }
  void* handle = dlopen(soname("libnvinfer").c_str(), RTLD_LAZY | RTLD_GLOBAL);
  return handle != nullptr ? dlsym(handle, name) : nullptr;
}

// Interfaces of loggers and registries changed between TensorRT 10 and 11, and nothing in TensorRT
// refuses a plugin of another major version: the wrong virtual function would be called.
bool same_major(bool load) {
  auto major = reinterpret_cast<std::int32_t (*)()>(
      tensorrt_symbol("getInferLibMajorVersion", load));
  if (major == nullptr) {
    log(Severity::kError, "found no TensorRT " + std::to_string(NV_TENSORRT_MAJOR) +
                              " in this process");
    return false;
  }
  if (major() != NV_TENSORRT_MAJOR) {
    log(Severity::kError, "this library is for TensorRT " + std::to_string(NV_TENSORRT_MAJOR) +
                              ", the process has " + std::to_string(major()) +
                              "; build the plugin with that version's headers");
    return false;
  }
  return true;
}

nvinfer1::ILogger* tensorrt_logger = nullptr;

void send(Severity severity, char const* message) {
  using Level = nvinfer1::ILogger::Severity;
  Level const level = severity == Severity::kError     ? Level::kERROR
                      : severity == Severity::kWarning ? Level::kWARNING
                                                       : Level::kINFO;
  tensorrt_logger->log(level, message);
}

void use_logger(nvinfer1::ILogger* logger) {
  if (logger != nullptr) {
    tensorrt_logger = logger;
    set_log_sink(send);
  }
}

bool register_all() {
  std::lock_guard<std::mutex> lock(mutex);
  if (registered) {
    return true;
  }
  if (!same_major(true)) {
    return false;
  }
  auto find = reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(
      tensorrt_symbol("getPluginRegistry", true));
  nvinfer1::IPluginRegistry* registry = find != nullptr ? find() : nullptr;
  if (registry == nullptr) {
    log(Severity::kError, "TensorRT has no plugin registry");
    return false;
  }
  for (std::int32_t i = 0; i < kCreators; ++i) {
    if (!registry->registerCreator(*creators()[i], kNamespace)) {
      log(Severity::kError, "TensorRT refused a creator: the plugins are registered already");
      return false;
    }
  }
  registered = true;
  return true;
}

// The processes of a server that deserialise engines. LD_PRELOAD reaches all that it starts, mpirun,
// env and shells too: those must not load a TensorRT each.
constexpr std::array<char const*, 3> kServers = {"tritonserver", "triton_python_backend_stub",
                                                 "trtllmExecutorWorker"};

// By the name that it was called by, or by its file's.
bool is_server() {
  std::array<char, 4096> path{};
  ssize_t const length = readlink("/proc/self/exe", path.data(), path.size() - 1);
  char const* const slash = length > 0 ? std::strrchr(path.data(), '/') : nullptr;
  char const* const file = slash != nullptr ? slash + 1 : "";
  for (char const* server : kServers) {
    if (std::strcmp(program_invocation_short_name, server) == 0 || std::strcmp(file, server) == 0) {
      return true;
    }
  }
  return false;
}

__attribute__((constructor)) void preloaded() {
  char const* wanted = std::getenv("DYCOKE_AUTOREGISTER");
  if (wanted != nullptr && std::strcmp(wanted, "1") == 0 && is_server()) {
    register_all();
  }
}

}  // namespace

}  // namespace dycoke

// Registers the three plugins in TensorRT's registry, under the namespace "dycoke", each for both
// of its plugin interfaces, unless this library did before. logger: an
// nvinfer1::ILogger of this library's TensorRT major version, or null for stderr.
DYCOKE_EXPORT bool initDycokePlugins(void* logger) {
  if (!dycoke::same_major(true)) {
    return false;
  }
  dycoke::use_logger(static_cast<nvinfer1::ILogger*>(logger));
  return dycoke::register_all();
}

DYCOKE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  std::lock_guard<std::mutex> lock(dycoke::mutex);
  if (dycoke::registered) {
    dycoke::log(dycoke::Severity::kWarning,
                "the plugins are registered already; do not load the library a second time");
    count = 0;
    return nullptr;
  }
  count = dycoke::kLoadable;
  return dycoke::creators();
}

DYCOKE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  if (finder != nullptr && dycoke::same_major(false)) {
    dycoke::use_logger(finder->findLogger());
  }
}
