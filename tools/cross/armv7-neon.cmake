# toolchain: Debian's gcc-arm-linux-gnueabihf with NEON and FMA compiled in (-mfpu), run by qemu-arm
include(${CMAKE_CURRENT_LIST_DIR}/armv7.cmake)
set(CMAKE_C_FLAGS_INIT -mfpu=neon-vfpv4)
