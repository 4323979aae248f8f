//! What was published stays, and the check that says so is itself checked: one change of each kind
//! is made to a copy of the descriptors and must be reported by name.
#![allow(clippy::unwrap_used, missing_docs)]

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use weft_proto::{WEFT_DESCRIPTORS, compat::breaking_changes};

const PUBLISHED: &[u8] = include_bytes!("../published/weft.bin");

fn current() -> FileDescriptorSet {
    FileDescriptorSet::decode(WEFT_DESCRIPTORS).unwrap()
}

#[test]
fn nothing_published_is_lost() {
    let published = FileDescriptorSet::decode(PUBLISHED).unwrap();
    assert!(
        published.file.iter().any(|f| f.package().starts_with("weft.")),
        "proto/published/weft.bin holds none of Weft's packages"
    );
    let lost = breaking_changes(&published, &current());
    assert!(
        lost.is_empty(),
        "peers of the published version would break:\n  {}\nKeep what is published and add beside it.",
        lost.join("\n  ")
    );
}

/// The first thing of its kind in Weft's own files for which `change` says what must be reported.
fn changed(change: impl FnMut(&mut FileDescriptorProto) -> Option<String>) -> (FileDescriptorSet, String) {
    let mut set = current();
    let expected = set
        .file
        .iter_mut()
        .filter(|f| f.package().starts_with("weft."))
        .find_map(change)
        .expect("nothing to change in the descriptors");
    (set, expected)
}

fn with_field(file: &mut FileDescriptorProto) -> Option<(String, &mut DescriptorProto)> {
    let package = file.package().to_owned();
    let message = file.message_type.iter_mut().find(|m| m.field.len() > 1)?;
    Some((format!("{package}.{}", message.name()), message))
}

#[track_caller]
fn reported((set, expected): (FileDescriptorSet, String)) {
    let lost = breaking_changes(&current(), &set);
    assert!(
        lost.iter().any(|line| line.contains(&expected)),
        "{expected:?} is not reported: {lost:#?}"
    );
}

#[test]
fn an_unchanged_set_is_fine() {
    assert_eq!(breaking_changes(&current(), &current()), Vec::<String>::new());
}

#[test]
fn a_removed_field_is_reported() {
    reported(changed(|file| {
        let (name, message) = with_field(file)?;
        let field = message.field.remove(0);
        Some(format!(
            "field {name}.{} = {} is gone",
            field.name(),
            field.number()
        ))
    }));
}

#[test]
fn a_renumbered_field_is_reported() {
    reported(changed(|file| {
        let (name, message) = with_field(file)?;
        let field = &mut message.field[0];
        let expected = format!("field {name}.{} = {} is gone", field.name(), field.number());
        field.number = Some(999);
        Some(expected)
    }));
}

#[test]
fn a_renamed_field_is_reported() {
    reported(changed(|file| {
        let (name, message) = with_field(file)?;
        let field = &mut message.field[0];
        let expected = format!("field {name}.{} = {} is now called", field.name(), field.number());
        field.name = Some("something_else".into());
        Some(expected)
    }));
}

#[test]
fn a_retyped_field_is_reported() {
    use prost_types::field_descriptor_proto::Type;
    reported(changed(|file| {
        let (name, message) = with_field(file)?;
        let field = message.field.iter_mut().find(|f| f.r#type() != Type::Sfixed64)?;
        field.set_type(Type::Sfixed64);
        field.type_name = None;
        Some(format!("field {name}.{} = {} was", field.name(), field.number()))
    }));
}

#[test]
fn a_field_that_becomes_repeated_is_reported() {
    use prost_types::field_descriptor_proto::Label;
    reported(changed(|file| {
        let (name, message) = with_field(file)?;
        let field = message.field.iter_mut().find(|f| f.label() != Label::Repeated)?;
        field.set_label(Label::Repeated);
        Some(format!("field {name}.{} = {} was", field.name(), field.number()))
    }));
}

#[test]
fn a_removed_message_is_reported() {
    reported(changed(|file| {
        let package = file.package().to_owned();
        let message = file.message_type.pop()?;
        Some(format!("message {package}.{} is gone", message.name()))
    }));
}

#[test]
fn a_removed_and_a_renamed_enum_value_are_reported() {
    reported(changed(|file| {
        let package = file.package().to_owned();
        let one = file.enum_type.first_mut()?;
        let value = one.value.pop()?;
        Some(format!(
            "enum value {package}.{}.{} = {} is gone",
            one.name(),
            value.name(),
            value.number()
        ))
    }));
    reported(changed(|file| {
        let package = file.package().to_owned();
        let one = file.enum_type.first_mut()?;
        let name = one.name().to_owned();
        let value = one.value.first_mut()?;
        let expected = format!(
            "enum value {package}.{}.{} = {} is now called",
            name,
            value.name(),
            value.number()
        );
        value.name = Some("SOMETHING_ELSE".into());
        Some(expected)
    }));
}

#[test]
fn a_removed_method_and_a_changed_signature_are_reported() {
    reported(changed(|file| {
        let package = file.package().to_owned();
        let service = file.service.first_mut()?;
        let method = service.method.pop()?;
        Some(format!(
            "method {package}.{}.{} is gone",
            service.name(),
            method.name()
        ))
    }));
    reported(changed(|file| {
        let package = file.package().to_owned();
        let service = file.service.first_mut()?;
        let name = service.name().to_owned();
        let method = service.method.first_mut()?;
        method.server_streaming = Some(!method.server_streaming());
        Some(format!("method {package}.{}.{} was", name, method.name()))
    }));
}

#[test]
fn additions_are_fine() {
    let (set, _) = changed(|file| {
        let addition = DescriptorProto {
            name: Some("BrandNew".into()),
            ..DescriptorProto::default()
        };
        file.message_type.push(addition);
        let (_, message) = with_field(file)?;
        let mut field = message.field[0].clone();
        field.number = Some(999);
        field.name = Some("brand_new".into());
        message.field.push(field);
        Some(String::new())
    });
    assert_eq!(breaking_changes(&current(), &set), Vec::<String>::new());
}
