# Stores a program that comes over standard input, and starts it. Before this script the client sent
# a line that sets name, size, uid. See protocol-spec/10-bootstrap.md.
umask 077
# Directories of others are entered before they are judged: no command may come from one.
case :$PATH: in *:[.:0-9A-Z_a-z]*) PATH=/usr/bin:/bin:$PATH ;; esac
f=fastsync
say() { echo "@$f-boot $*"; }
why=
pass() { why="$why; $dir: $1"; }
fail() {
    say fail "$1"
    exit 1
}

# Enters a directory, if it is ours and nobody else can write in it.
enter() {
    cd "$1" 2>/dev/null || return 1
    set -- $(ls -ldn .)
    case "$1 $3" in
    d????-??-*" $uid") return 0 ;;
    esac
    return 1
}

# Whether what is here is the program that its name says, and runs here.
whole() {
    case "$("./$name" agent --digest </dev/null 2>/dev/null)" in "${name##*-}"*) return 0 ;; esac
    return 1
}

# Runs what an earlier session, or another one just now, has stored.
set -- "$FASTSYNC_AGENT_DIR" "$XDG_CACHE_HOME/$f" "$HOME/.cache/$f" \
    "$TMPDIR/$f-$uid"* "/tmp/$f-$uid"*
for dir in "$@"; do
    if [ -x "$dir/$name" ] && enter "$dir" && whole; then exec "./$name" agent --cached; fi
done

set --
for dir in "$FASTSYNC_AGENT_DIR" "${XDG_CACHE_HOME:+$XDG_CACHE_HOME/$f}" "${HOME:+$HOME/.cache/$f}"; do
    [ -z "$dir" ] || set -- "$@" "$dir"
done
for dir in "$TMPDIR" /tmp; do
    [ -z "$dir" ] || set -- "$@" "$dir/$f-$uid" "$dir/$f-$uid-$$"
done

# Whether the directory can be used; says why not.
try() {
    case "$dir" in
    *"/$f-$uid"*) if [ -h "$dir" ]; then pass "it is a symlink" && return 1; fi ;;
    esac
    if [ ! -d "$dir" ]; then
        made=$(mkdir -p "$dir" 2>&1) || { pass "it cannot be made" && return 1; }
    fi
    enter "$dir" || { pass "it is not only yours" && return 1; }
    free=$(df -Pk . 2>/dev/null | { read -r _ && read -r _ _ _ free _ && echo "$free"; })
    case "$free" in
    '' | *[!0-9]*) ;;
    *)
        if [ "$free" -lt $((size / 1024 + 64)) ]; then
            pass "it has no room: $free KiB are free" && return 1
        fi
        ;;
    esac
    probe=./.$name.$(uname -n).$$
    if (printf '#!/bin/sh\nexit 7\n' >"$probe") 2>/dev/null && chmod 700 "$probe"; then
        "$probe" 2>/dev/null
        code=$?
        rm -f "$probe"
        [ "$code" = 7 ] || { pass "programs cannot run from it (noexec)" && return 1; }
        # A quota is not in what df says.
        head -c "$size" /dev/zero 2>/dev/null >"$probe"
        kept=$(($(wc -c <"$probe")))
        rm -f "$probe"
        [ "$kept" = "$size" ] || { pass "it has no room for $size bytes" && return 1; }
    else
        rm -f "$probe" 2>/dev/null
        pass "it cannot be written" && return 1
    fi
}

for dir in "$@" ''; do
    [ -n "$dir" ] || fail "there is no directory for the program${why}"
    if try; then break; fi
done

temporary=./.$name.$(uname -n).$$
trap 'rm -f "$temporary"' EXIT
trap 'exit 1' HUP INT TERM PIPE
say send "$PWD"
head -c "$size" >"$temporary" || fail "$PWD: the program cannot be written"
[ "$(wc -c <"$temporary")" -eq "$size" ] || fail "$PWD: the program did not arrive whole"
chmod 700 "$temporary"
digest=$("$temporary" agent --digest) || fail "the program does not run there"
say digest "$digest"
read -r answer
[ "$answer" = go ] || exit 1
mv -f "$temporary" "./$name" || fail "$PWD: the program cannot be renamed"
trap - EXIT HUP INT TERM PIPE
exec "./$name" agent --cached
