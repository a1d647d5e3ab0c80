package main

import (
	"slices"
	"strings"
	"testing"
)

const listing = `
Fatbin elf code:
================
arch = sm_80

	code for sm_80
		Function : _ZN36_GLOBAL__N__d6710080_8_gemm_s8_cu_fb4gemmILi1EEEvPKa
	.headerflags	@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;               /* 0x00000a00ff017624 */
                                                                                         /* 0x000fe400078e00ff */
        /*00a0*/              @!P0 LDGSTS.E.BYPASS.LTC128B.128 [R12], [R2.64] ;          /* 0x0000034000008947 */
        /*00b0*/                   IMMA.16832.S8.S8 R4, R8.ROW, R12.COL, R4 ;            /* 0x0000034000008947 */
        /*00c0*/             @!UP0 UMOV UR4, URZ ;                                       /* 0x0000034000008947 */
		Function : _ZN4spillEv
        /*0000*/                   STL.64 [R1], R2 ;                                     /* 0x0000034000008947 */
        /*0010*/                   LDL R2, [R1+0x4] ;                                    /* 0x0000034000008947 */
`

func TestParseAndJudge(t *testing.T) {
	all, err := parse(strings.NewReader(listing), "sm_80")
	if err != nil || len(all) != 2 || all[0].instructions != 4 || all[1].local != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	all[1].name = "_Z5spillv"
	good := []rule{{"gemm", "sm_80", []string{"IMMA.16832.S8.S8", "HMMA|LDGSTS", "UMOV"}}}
	if p := judge(all, good, map[string]exception{"spill": {2, "a test"}}); len(p) != 0 {
		t.Error(p)
	}
	got := judge(all, []rule{{"gemm", "sm_80", []string{"IMMA.8816", "LDSM", "LDG"}}, {"gemm", "sm_90a", nil}, {"other", "sm_80", nil}}, map[string]exception{"gone": {}, "spill": {accesses: 1}})
	want := []string{
		"no kernel gone uses local memory: take it off the list",
		"sm_80: 2 accesses to local memory in _Z5spillv",
		"sm_80: no IMMA.8816 in " + all[0].name,
		"sm_80: no LDG in " + all[0].name,
		"sm_80: no LDSM in " + all[0].name,
		"sm_80: there is no kernel other",
		"sm_90a: there is no kernel gemm",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestIs(t *testing.T) {
	for _, c := range []struct {
		mangled, kernel string
		want            bool
	}{
		{"_Z4gemmv", "gemm", true},
		{"_ZN1a4gemmILi8EEEv", "gemm", true},
		{"_ZN1a14gemm_s8_dp4aaaEv", "gemm", false},
		{"_ZN1a4gemm4gemmEv", "gemm", true},
		{"_ZN4gemm5otherEv", "gemm", false},
		{"_ZN12_GLOBAL__N_14gemmILi8EEEv", "gemm", true},
		{"_ZN44_GLOBAL__N__63c10763_11_quantize_cu_7bf5419313quantize_rowsILi0EEEvPKf", "quantize_rows", true},
		{"gemm", "gemm", true},
		{"_Z12gemm_s8_dp4a10GemmS8Args", "gemm_s8_dp4a", true},
		{"_Z99gemm", "gemm", false},
		{"_Z7gemm_s8v", "gemm", false},
	} {
		if got := is(c.mangled, c.kernel); got != c.want {
			t.Errorf("is(%q, %q) = %v", c.mangled, c.kernel, got)
		}
	}
}
