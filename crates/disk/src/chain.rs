//! Overlays on top of each other, as one set of changes.

use std::iter::Peekable;
use std::ops::Range;
use std::path::Path;

use crate::input::{Input, check_range};
use crate::{BlockSource, Error, Extent, ExtentKind, Extents, Qcow2, Result};

/// Overlays in one chain. A build makes one for each step; QEMU itself gets slow long before this.
pub const MAX_LAYERS: usize = 200;

/// qcow2 overlays from bottom to top. The chain is what the caller says: names in the files are ignored, because a
/// guest that could write one would choose which file of the host is read.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Qcow2>,
}

impl Chain {
    /// Opens the layers, the lowest first. Refused: no layer, more than [`MAX_LAYERS`], and a layer that is smaller than
    /// the one below it (what shows through behind its end would depend on the reader).
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        check_count(paths.len())?;
        Self::from_inputs(paths.iter().map(|path| Input::open(path.as_ref())).collect::<Result<Vec<_>>>()?)
    }

    /// The same with files that are open already.
    pub fn from_inputs(inputs: Vec<Input>) -> Result<Self> {
        check_count(inputs.len())?;
        let layers = inputs.into_iter().map(Qcow2::from_input).collect::<Result<Vec<_>>>()?;
        for pair in layers.windows(2) {
            if pair[1].virtual_size() < pair[0].virtual_size() {
                let reason = format!(
                    "{} has {} bytes, fewer than the {} of {} below it",
                    pair[1].path().display(),
                    pair[1].virtual_size(),
                    pair[0].virtual_size(),
                    pair[0].path().display()
                );
                return Err(Error::Chain { reason });
            }
        }
        Ok(Self { layers })
    }

    /// Reads what the layers hold of `offset ..`, and says which parts of `buf` that is: sorted, disjoint.
    pub(crate) fn read_covered(&self, offset: u64, buf: &mut [u8]) -> Result<Vec<Range<usize>>> {
        check_range(offset, buf.len() as u64, self.logical_size())?;
        let mut covered = Covered::default();
        // The usual case, a top layer that holds all of it, reads nothing else.
        if let Some(top) = self.layers.last() {
            top.read_covering(offset, buf, &mut covered)?;
        }
        if covered.bytes() < buf.len() && self.layers.len() > 1 {
            for layer in &self.layers {
                let len = layer.virtual_size().saturating_sub(offset).min(buf.len() as u64) as usize;
                if len > 0 {
                    layer.read_covering(offset, &mut buf[..len], &mut covered)?;
                }
            }
        }
        Ok(covered.0)
    }

    /// The lowest layer's path and the name of the file that it says to be an overlay of, if it says so.
    pub(crate) fn lowest_backing(&self) -> Option<(&Path, &str)> {
        let lowest = self.layers.first()?;
        Some((lowest.path(), lowest.backing()?))
    }
}

fn check_count(layers: usize) -> Result<()> {
    if layers == 0 || layers > MAX_LAYERS {
        return Err(Error::Chain { reason: format!("{layers} layers; 1 to {MAX_LAYERS} are possible") });
    }
    Ok(())
}

impl BlockSource for Chain {
    fn logical_size(&self) -> u64 {
        self.layers.last().map_or(0, Qcow2::virtual_size)
    }

    /// What any layer changed; where several did, the top-most says what it is.
    fn extents(&self) -> Extents<'_> {
        let layers = self.layers.iter().map(|layer| (Box::new(layer.extents()) as Extents<'_>).peekable());
        Box::new(Merge { layers: layers.collect(), position: 0, failed: false })
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        Ok(self.read_covered(offset, buf)?.iter().map(Range::len).sum())
    }
}

/// Which bytes of one read some layer wrote: sorted ranges which do not touch.
#[derive(Default)]
pub(crate) struct Covered(Vec<Range<usize>>);

impl Covered {
    pub(crate) fn add(&mut self, range: Range<usize>) {
        let first = self.0.partition_point(|other| other.end < range.start);
        let last = self.0.partition_point(|other| other.start <= range.end);
        let touching = &self.0[first..last];
        let start = touching.first().map_or(range.start, |other| other.start.min(range.start));
        let end = touching.last().map_or(range.end, |other| other.end.max(range.end));
        self.0.splice(first..last, std::iter::once(start..end));
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(Range::len).sum()
    }
}

/// Merges the layers' extents, the last layer on top.
struct Merge<'a> {
    layers: Vec<Peekable<Extents<'a>>>,
    position: u64,
    failed: bool,
}

impl Merge<'_> {
    fn next_extent(&mut self) -> Result<Option<Extent>> {
        // Each layer's first extent that ends after the position.
        let mut heads = Vec::with_capacity(self.layers.len());
        for layer in &mut self.layers {
            while layer.next_if(|head| head.as_ref().is_ok_and(|e| e.end() <= self.position)).is_some() {}
            match layer.next_if(Result::is_err) {
                Some(Err(error)) => return Err(error),
                _ => heads.push(layer.peek().and_then(|head| head.as_ref().ok().copied())),
            }
        }
        let Some(start) = heads.iter().flatten().map(|head| head.start.max(self.position)).min() else {
            return Ok(None);
        };
        let mut end = u64::MAX;
        let mut kind = ExtentKind::Data;
        for head in heads.iter().rev().flatten() {
            if head.start <= start {
                end = end.min(head.end());
                kind = head.kind;
                break;
            }
            // A higher layer that begins later ends what a lower one says.
            end = end.min(head.start);
        }
        self.position = end;
        Ok(Some(Extent { start, len: end - start, kind }))
    }
}

impl Iterator for Merge<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_extent().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}
