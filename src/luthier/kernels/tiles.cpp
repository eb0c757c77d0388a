// Which tiles this library was made for, and whether they may be used.

#include "tiles.h"

#ifdef LUTHIER_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>

// Linux hands out the tiles' 8 KB of state on request (ARCH_REQ_XCOMP_PERM, XTILEDATA).
extern "C" int luthier_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? 1 : 0; }
#elif defined(LUTHIER_HAS_PAIRS)
extern "C" int luthier_tiles() { return 2; }
#elif defined(LUTHIER_HAS_TILES)
extern "C" int luthier_tiles() { return 3; }
#else
extern "C" int luthier_tiles() { return 0; }
#endif
