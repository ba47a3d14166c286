//! Where a field lies in a structure of the running kernel, by its type information (BTF): the `sk_msg`
//! program reads one field that no helper gives. A reader for just that; see `linux/btf.h`.

use std::{fs, io};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// The offset of `write_seq` in `struct tcp_sock`, in bytes.
pub(super) fn write_seq() -> io::Result<u32> {
    let btf = fs::read(VMLINUX)?;
    offset(&btf, "tcp_sock", "write_seq").ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{VMLINUX} has no tcp_sock with a write_seq"))
    })
}

/// The offset of a field that begins at a byte, or `None` if there is no such one.
fn offset(btf: &[u8], structure: &str, field: &str) -> Option<u32> {
    let word = |at: usize| Some(u32::from_ne_bytes(btf.get(at..at + 4)?.try_into().ok()?));
    if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let header = word(4)? as usize;
    let (types, types_len) = (header + word(8)? as usize, word(12)? as usize);
    let (strings, strings_len) = (header + word(16)? as usize, word(20)? as usize);
    let strings = btf.get(strings..strings + strings_len)?;
    let is_named = |name: u32, wanted: &str| {
        let rest = strings.get(name as usize..).and_then(|rest| rest.strip_prefix(wanted.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut at = types;
    while at < types + types_len {
        let (name, info) = (word(at)?, word(at + 4)?);
        let (kind, members, bitfields) = (info >> 24 & 0x1f, info & 0xffff, info >> 31 == 1);
        at += 12;
        if kind == KIND_STRUCT && is_named(name, structure) {
            for member in (0..members as usize).map(|number| at + 12 * number) {
                if is_named(word(member)?, field) {
                    let bits = word(member + 8)? & if bitfields { 0xff_ffff } else { u32::MAX };
                    return (bits % 8 == 0).then_some(bits / 8);
                }
            }
        }
        at += match kind {
            // What a type has after its three words: int 1, array 3, and lists.
            1 | 14 | 17 => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * members as usize,
            6 | 13 => 8 * members as usize,
            // Pointers, forwards, typedefs, qualifiers, functions, floats, tags.
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of four bytes in a header with a table of strings.
    fn btf(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let mut btf = [&MAGIC.to_ne_bytes()[..], &[1, 0]].concat();
        let length = types.len() as u32 * 4;
        for word in [24, 0, length, length, strings.len() as u32].iter().chain(types) {
            btf.extend(word.to_ne_bytes());
        }
        btf.extend(strings);
        btf
    }

    #[test]
    fn finds_a_field_and_no_other() {
        let strings = b"\0int\0tcp_sock\0tcp_socket\0seq\0write_seq\0";
        let int = [1, 1 << 24, 4, 32];
        let decoy = [14, KIND_STRUCT << 24 | 1, 4, 29, 1, 8];
        let wanted = [5, KIND_STRUCT << 24 | 2, 8, 25, 1, 0, 29, 1, 32];
        let found = btf(&[&int[..], &decoy, &wanted].concat(), strings);
        assert_eq!(offset(&found, "tcp_sock", "write_seq"), Some(4));
        assert_eq!(offset(&found, "tcp_socket", "write_seq"), Some(1));
        assert_eq!(offset(&found, "tcp_sock", "write"), None);
        assert_eq!(offset(&btf(&int, strings), "tcp_sock", "write_seq"), None);
        assert_eq!(offset(&found[..40], "tcp_sock", "write_seq"), None);
        assert_eq!(offset(&[], "tcp_sock", "write_seq"), None);
    }

    #[test]
    fn the_running_kernel_has_it() {
        let offset = write_seq().unwrap();
        assert!(offset > 0 && offset < 8_192, "{offset}");
    }
}
