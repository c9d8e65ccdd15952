// Loaded beside a program by the dynamic linker (LD_AUDIT): what the libraries named in $AS_AVX2 hear
// from `cpuid` is a processor with AVX2 and nothing newer, so that they choose their AVX2 kernels.
//
// $AS_AVX2 is "PATH:ADDRESS,ADDRESS,...;PATH:...": a library, without symbolic links, and where in it
// `cpuid` instructions are, in hex, as objdump prints them. Each (0F A2) is overwritten by a
// breakpoint and a NOP (CC 90) before the library's first instruction runs; the breakpoint's handler
// answers instead.

#define _GNU_SOURCE
#include <cpuid.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

// Bits of leaf 7, as Intel's and AMD's manuals number them.
static const unsigned AVX512_EBX = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 |
                                   1u << 30 | 1u << 31;  // F, DQ, IFMA, PF, ER, CD, BW, VL
static const unsigned NEWER_ECX = 1u << 1 | 1u << 6 | 1u << 8 | 1u << 9 | 1u << 10 | 1u << 11 |
                                  1u << 12 | 1u << 14;  // VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI...
static const unsigned NEWER_EDX = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 |
                                  1u << 25;  // 4VNNIW, 4FMAPS, VP2INTERSECT, AMX and AVX512-FP16

static void answer(int signal_number, siginfo_t *info, void *context) {
  (void)signal_number;
  (void)info;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX];
  unsigned a, b, c, d;
  __cpuid_count(leaf, part, a, b, c, d);
  if (leaf == 7 && part == 0) {
    b &= ~AVX512_EBX;
    c &= ~NEWER_ECX;
    d &= ~NEWER_EDX;
  } else if (leaf == 7) {
    a = b = c = d = 0;  // AVX-VNNI, AVX512-BF16, AMX-FP16, AVX10
  }
  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
}

static void overwrite(unsigned char *base, const char *addresses) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  for (char *next = (char *)addresses; *next && *next != ';'; next += *next == ',') {
    unsigned char *code = base + strtoul(next, &next, 16);
    if (code[0] != 0x0F || code[1] != 0xA2) abort();  // another library than objdump has read
    unsigned char *start = (unsigned char *)((size_t)code & ~(page - 1));
    mprotect(start, 2 * page, PROT_READ | PROT_WRITE | PROT_EXEC);
    code[0] = 0xCC;
    code[1] = 0x90;
    mprotect(start, 2 * page, PROT_READ | PROT_EXEC);
  }
}

unsigned la_version(unsigned version) {
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
  sigaction(SIGTRAP, &action, NULL);
  return version;
}

// The linker calls it when a library is mapped, before it relocates it.
unsigned la_objopen(struct link_map *library, Lmid_t namespace, uintptr_t *cookie) {
  (void)namespace;
  (void)cookie;
  char path[PATH_MAX];
  if (!realpath(library->l_name, path)) return 0;  // the program itself has no name
  for (const char *entry = getenv("AS_AVX2"); entry; entry = strchr(entry, ';')) {
    entry += *entry == ';';
    const char *colon = strchr(entry, ':');
    if (!colon) break;
    const size_t length = (size_t)(colon - entry);
    if (strlen(path) == length && !strncmp(path, entry, length)) {
      overwrite((unsigned char *)library->l_addr, colon + 1);
    }
  }
  return 0;
}
