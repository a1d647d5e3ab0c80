// The kernel of level `amx` on emulated tiles: its own source once more.
#define FEWBIT_AMX_EMULATED
#define int8_amx int8_amx_emulated
#include "../int8_amx.cpp"
