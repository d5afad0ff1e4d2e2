#!/bin/sh
# Prints an identity that the step CLI keeps in files (docs/providers/exec.md).
#
#   step-files.sh CERTIFICATE KEY ROOT
#
# The files are those of `step ca certificate NAME CERTIFICATE KEY` (the leaf with its intermediate, and a key without
# a passphrase: --no-password --insecure) and `step ca root ROOT`. `step ca renew --daemon CERTIFICATE KEY` keeps
# them new; give --exec-refresh-interval to say how soon that is to be seen.
#
# A pair that step is in the middle of replacing does not match: it is not used, and asked for again.
set -eu

[ $# -eq 3 ] || { echo "usage: $0 CERTIFICATE KEY ROOT" >&2; exit 2; }
for file; do
  [ -r "$file" ] || { echo "cannot read $file: see whether 'step ca renew --daemon' runs, and as which user" >&2; exit 1; }
done

# step writes a certificate only for who holds the key; an hour before its end something is wrong with the renewal.
if ! openssl x509 -in "$1" -noout -checkend 3600 > /dev/null; then
  echo "$1 ends within an hour and was not renewed: see whether step ca renew --daemon runs" >&2
fi
cat "$1" "$2" "$3"
