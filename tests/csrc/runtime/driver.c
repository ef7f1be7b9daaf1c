/* A libcuda.so.1 for tests: checks what it is asked in the order CUDA wants it, and remembers the
   last launch. The environment says what it pretends:
     FAKE_DEVICES     compute capabilities, "90,86"
     FAKE_PARAMETERS  bytes of the kernel's parameters, "8,4"
     FAKE_FAIL        a function and the error it returns, "cuLaunchKernel=700"
     FAKE_STATIC      bytes of static shared memory */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RELAXED = 2, INVALID_VALUE = 1, NO_CONTEXT = 201, NOT_FOUND = 500 };

struct launch {
  void *function, *context, *stream;
  unsigned grid[3], block[3], shared_bytes, bytes;
  unsigned char parameters[4096];
  int count, pushes, pops, loads, relaxed_loads, unloads;
} fake_launch;
int fake_dynamic_limit; /* what cuFuncSetAttribute was told */
static _Thread_local void* stack[16];
static _Thread_local int depth, mode;
static char image_text[1 << 16];

static int failure(const char* name) {
  const char* wanted = getenv("FAKE_FAIL");
  size_t length = strlen(name);
  return wanted && !strncmp(wanted, name, length) && wanted[length] == '='
             ? atoi(wanted + length + 1)
             : 0;
}
static int number(const char* variable, int index) { /* -1 past the end */
  const char* text = getenv(variable);
  for (; text && index > 0; --index) text = strchr(text, ',') ? strchr(text, ',') + 1 : NULL;
  return text && *text ? atoi(text) : -1;
}
#define FAIL_IF_TOLD()            \
  do {                            \
    int code = failure(__func__); \
    if (code) return code;        \
  } while (0)

int cuInit(unsigned flags) {
  (void)flags;
  FAIL_IF_TOLD();
  return 0;
}
int cuDriverGetVersion(int* version) {
  *version = 12080;
  return 0;
}
int cuGetErrorName(int code, const char** name) {
  *name = code == 700   ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : code == 100 ? "CUDA_ERROR_NO_DEVICE"
          : code == 1   ? "CUDA_ERROR_INVALID_VALUE"
          : code == 500 ? "CUDA_ERROR_NOT_FOUND"
                        : NULL;
  return *name ? 0 : INVALID_VALUE;
}
int cuGetErrorString(int code, const char** text) {
  *text = code == 700 ? "an illegal memory access was encountered" : NULL;
  return *text ? 0 : INVALID_VALUE;
}
int cuDeviceGetCount(int* count) {
  for (*count = 0; number("FAKE_DEVICES", *count) >= 0;) ++*count;
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal + 40;
  return 0;
} /* no ordinal */
int cuDeviceGetName(char* name, int size, int device) {
  snprintf(name, size, "Fake %d", device - 40);
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  int capability = number("FAKE_DEVICES", device - 40);
  *value = attribute == 16   ? 7
           : attribute == 75 ? capability / 10
           : attribute == 76 ? capability % 10
           : attribute == 97 ? 101376
                             : -1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  FAIL_IF_TOLD();
  *context = (void*)(uintptr_t)(0x1000 + device - 40);
  return 0;
}
int cuCtxGetCurrent(void** context) {
  *context = depth ? stack[depth - 1] : NULL;
  return 0;
}
int cuCtxPushCurrent_v2(void* context) {
  stack[depth++] = context;
  ++fake_launch.pushes;
  return 0;
}
int cuCtxPopCurrent_v2(void** context) {
  *context = stack[--depth];
  ++fake_launch.pops;
  return 0;
}
int cuThreadExchangeStreamCaptureMode(int* exchanged) {
  int before = mode;
  mode = *exchanged;
  *exchanged = before;
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  FAIL_IF_TOLD();
  if (!depth) return NO_CONTEXT;
  ++fake_launch.loads, fake_launch.relaxed_loads += mode == RELAXED;
  snprintf(image_text, sizeof image_text, "%s", (const char*)image);
  *module = image_text;
  return 0;
}
int cuModuleUnload(void* module) {
  (void)module;
  ++fake_launch.unloads;
  return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = strstr(module, name);
  return *function ? 0 : NOT_FOUND;
}
int cuFuncLoad(void* function) {
  (void)function;
  return mode == RELAXED ? 0 : INVALID_VALUE;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  (void)function;
  *value = attribute == 0   ? 512
           : attribute == 1 ? (getenv("FAKE_STATIC") ? atoi(getenv("FAKE_STATIC")) : 0)
           : attribute == 4 ? 99
                            : 0;
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  (void)function;
  if (attribute == 8) fake_dynamic_limit = value;
  return 0;
}
int cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* size) {
  (void)function;
  *offset = *size = 0;
  for (size_t i = 0; i <= index; ++i) {
    int bytes = number("FAKE_PARAMETERS", (int)i);
    if (bytes < 0) return INVALID_VALUE;
    *offset = (*offset + *size + bytes - 1) / bytes * bytes, *size = bytes;
  }
  return 0;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared_bytes, void* stream, void** arguments,
                   void** extra) {
  FAIL_IF_TOLD();
  if (arguments || extra[0] != (void*)1 || extra[2] != (void*)2 || extra[4]) return INVALID_VALUE;
  struct launch* l = &fake_launch;
  l->function = function, l->context = depth ? stack[depth - 1] : NULL, l->stream = stream;
  l->grid[0] = gx, l->grid[1] = gy, l->grid[2] = gz, l->block[0] = bx, l->block[1] = by,
  l->block[2] = bz;
  l->shared_bytes = shared_bytes, l->bytes = (unsigned)*(size_t*)extra[3];
  memcpy(l->parameters, extra[1], l->bytes);
  ++l->count;
  return 0;
}
