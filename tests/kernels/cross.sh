#!/bin/sh
# The aarch64 kernels on any machine: built with the cross compiler, checked against the reference under emulation, each
# variant there is. Skipped (77) where the tools are missing.
set -eu
cc=aarch64-linux-gnu-gcc run=qemu-aarch64-static
for tool in $cc $run; do
    command -v $tool >/dev/null || { echo "skipped: no $tool (packages gcc-aarch64-linux-gnu, qemu-user-static)"; exit 77; }
done
src=$TERN_SOURCE out=$TERN_BUILD/aarch64
mkdir -p "$out"
compile() {   # FILE FLAGS...
    file=$1; shift
    $cc -std=c17 -O2 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Wno-unused-parameter -Werror -fno-strict-aliasing \
        -ffp-contract=off -I"$src" "$@" -c "$src/$file" -o "$out/$(basename "$file" .c).o"
}
for file in kernels/layout.c kernels/ref.c kernels/select.c kernels/aarch64.c kernels/neon.c base/err.c \
            tests/kernels/check.c tests/kernels/values.c tests/kernels/bench.c tests/kernels/variants.c; do
    compile $file
done
compile kernels/neon_dot.c -march=armv8.2-a+dotprod
compile kernels/neon_i8mm.c -march=armv8.2-a+dotprod+i8mm
$cc -static -pthread -o "$out/check" "$out"/*.o -lm
$run -cpu max "$out/check" "$@"
# A processor without the later instructions is not given them.
! TERN_CPU=dotprod $run -cpu cortex-a72 "$out/check" --bench 2>"$out/refused" || { echo "cortex-a72 took dotprod"; exit 1; }
grep "this machine has ref neon$" "$out/refused"
