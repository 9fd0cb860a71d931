// A host with TensorRT's real registry: argv[1] is libnvinfer(_lean), argv[2] the plugin's library
// to load through the registry, or nothing where it was preloaded. Prints what the registry holds.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <initializer_list>

int main(int count, char** arguments) {
  void* tensorrt = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
  auto find = reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(
      dlsym(tensorrt, "getPluginRegistry"));
  nvinfer1::IPluginRegistry* registry = find();
  void* library = count > 2 ? registry->loadLibrary(arguments[2]) : nullptr;
  for (char const* version : {"1", "1-v2"}) {
    for (char const* name : {"DycokeScore", "DycokeSelect", "DycokeRope"}) {
      if (registry->getCreator(name, version, "dycoke") != nullptr) {
        std::printf("%s/%s ", name, version);
      }
    }
  }
  if (library != nullptr) {
    registry->deregisterLibrary(library);
    std::printf("%d", registry->getCreator("DycokeRope", "1", "dycoke") != nullptr);
  }
}
