//! `snapctl cat SPEC:PATH`: the bytes of one file, as they are.

use store::{Error, Kind, Node};

use crate::args::CatArguments;
use crate::commands::ls;
use crate::context::Context;
use crate::exit::Outcome;
use crate::human;
use crate::nodes;

const BLOCK_BYTES: usize = 1 << 20;

pub(super) fn run(arguments: &CatArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    if !arguments.target.has_path {
        let error = Error::new(Kind::Invalid, "name a file: SPEC:PATH").object(&arguments.target.spec);
        return Err(error.advice("write SPEC:PATH").into());
    }
    let store = context.store()?;
    let (tree, shown) = ls::open_tree(&store, &arguments.target)?;
    let content = match nodes::find(&tree, &arguments.target.path, &shown)?.node {
        Node::File(content) => content,
        Node::Symlink(target) => {
            let what = format!("not a file but a symlink to {}", human::name(&target));
            return Err(Error::new(Kind::Invalid, what).object(shown).into());
        }
        node => {
            let what = format!("not a file but a {}", nodes::word(&node));
            return Err(Error::new(Kind::Invalid, what).object(shown).into());
        }
    };
    let reader = store.content(&content)?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut offset = 0;
    loop {
        let count = reader.read_at(offset, &mut block)?;
        if count == 0 {
            return Ok(Outcome::Done);
        }
        context.output.data(&block[..count])?;
        offset += count as u64;
    }
}
