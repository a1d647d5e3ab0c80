// The static part of the ITT API, as its authors wrote it. It finds its headers
// through the include path of itt.go.
#pragma GCC diagnostic ignored "-Wunused-function"
#include "ittapi/ittnotify_static.c"
