# The CUDA compiler and the archive of kernels.
#
# A compiler that is there is taken first: CUDACXX or CMAKE_CUDA_COMPILER, then
# nvcc on PATH or below /usr/local/cuda; 12.0 up to 13.x, on x86-64 Linux. Where
# there is none, the pinned one is fetched into .deps/cuda-toolkit.
if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  message(FATAL_ERROR "the CUDA build is for x86-64 Linux; build without FEWBIT_CUDA here")
endif()

# Sets `to` to the version of the compiler nvcc, or to "" where it does not say one.
function(fewbit_nvcc_version nvcc to)
  execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE text ERROR_QUIET RESULT_VARIABLE failed)
  set(version "")
  if(NOT failed AND text MATCHES "release ([0-9]+\\.[0-9]+)")
    set(version "${CMAKE_MATCH_1}")
  endif()
  set(${to} "${version}" PARENT_SCOPE)
endfunction()

set(chosen "")
if(CMAKE_CUDA_COMPILER)
  set(chosen "${CMAKE_CUDA_COMPILER}")
elseif(DEFINED ENV{CUDACXX})
  set(chosen "$ENV{CUDACXX}")
endif()
if(chosen)
  fewbit_nvcc_version("${chosen}" version)
  if(NOT version OR version VERSION_LESS 12.0 OR version VERSION_GREATER_EQUAL 14.0)
    message(FATAL_ERROR "${chosen} is version '${version}' of nvcc; 12.0 to 13.x is needed. Unset CUDACXX to have one fetched")
  endif()
else()
  find_program(found_nvcc nvcc PATHS /usr/local/cuda/bin NO_CACHE)
  if(found_nvcc)
    fewbit_nvcc_version("${found_nvcc}" version)
    if(version AND version VERSION_GREATER_EQUAL 12.0 AND version VERSION_LESS 14.0)
      set(chosen "${found_nvcc}")
    else()
      message(STATUS "CUDA: ${found_nvcc} is version '${version}', too old or too new; using the pinned one")
    endif()
  endif()
endif()
if(NOT chosen)
  find_package(Python3 3.8 COMPONENTS Interpreter REQUIRED)
  execute_process(COMMAND "${Python3_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/tools/fetch/fetch.py" cuda RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "the CUDA compiler could not be fetched; the line above says why. Or install a CUDA toolkit 12.x or 13.x and put nvcc on PATH")
  endif()
  set(deps "$ENV{FEWBIT_DEPS}")
  if(NOT deps)
    set(deps "${CMAKE_SOURCE_DIR}/.deps")
  endif()
  set(chosen "${deps}/cuda-toolkit/bin/nvcc")
  fewbit_nvcc_version("${chosen}" version)
endif()
set(CMAKE_CUDA_COMPILER "${chosen}" CACHE FILEPATH "nvcc" FORCE)
message(STATUS "CUDA: nvcc ${version}, ${chosen}")

# Machine code for each generation that the kernels have a path for, and PTX for those to come.
# 90a, not 90: the tensor core instructions of Hopper exist under this name only.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 89-real 90a-real 80-virtual)
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
enable_language(CUDA)

# Found, not listed: a kernel family is one new file.
file(GLOB kernels CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/cuda/*.cu")
add_library(fewbit_cuda STATIC ${kernels})
target_include_directories(fewbit_cuda PRIVATE "${CMAKE_SOURCE_DIR}/cuda")
set_target_properties(fewbit_cuda PROPERTIES
  ARCHIVE_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}" POSITION_INDEPENDENT_CODE ON
  CUDA_RUNTIME_LIBRARY Static CUDA_SEPARABLE_COMPILATION OFF)
# -lineinfo costs nothing at run time and lets compute-sanitizer name a line; compressed, the code
# of all generations is a sixth of its size.
# 186: a comparison with zero that is pointless for the unsigned instances of a template.
set(compress -Xfatbin=-compress-all)
if(version VERSION_GREATER_EQUAL 13.0) # the drivers that can run such a build can read it
  set(compress --compress-mode=size)
endif()
target_compile_options(fewbit_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo ${compress} --expt-relaxed-constexpr -diag-suppress=186 -Xcompiler=-Wall,-Wno-unused-function>)

# What tools/cuda/go.sh reads: where cgo finds headers and archives.
list(GET CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES 0 include)
set(libraries "")
foreach(dir ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} "${include}/../lib64" "${include}/../lib")
  if(EXISTS "${dir}/libcudart_static.a" AND NOT libraries)
    get_filename_component(libraries "${dir}" REALPATH)
  endif()
endforeach()
if(NOT libraries)
  message(FATAL_ERROR "no libcudart_static.a beside ${chosen}; install the development files of the CUDA runtime")
endif()
get_filename_component(programs "${chosen}" DIRECTORY)
file(WRITE "${CMAKE_BINARY_DIR}/toolkit.env" "CUDA_INCLUDE='${include}'\nCUDA_LIBRARIES='${libraries}'\nCUDA_PROGRAMS='${programs}'\nCUDA_VERSION='${version}'\n")
