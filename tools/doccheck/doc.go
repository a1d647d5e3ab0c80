// Package doccheck holds tests that keep the documentation true: links, file
// names, commands, routes, constants and the table of imports are compared with
// the repository. It has no code of its own.
//
//	go test ./tools/doccheck            # check
//	go test ./tools/doccheck -update    # write the generated parts anew
package doccheck
