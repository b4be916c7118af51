"""Each row of docs/input.md is held by a test, which is named here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HELD = {
    "Labels and boxes": [
        "test_boxes.test_a_set_of_fractions_is_refused_with_the_way_to_say_so",
        "test_boxes.test_a_box_like_a_fraction_among_pixels_is_taken_and_told",
        "test_boxes.test_pixels_in_place_of_fractions_are_refused",
        "test_boxes.test_fractions_of_a_picture_that_cannot_be_read_are_left_out_and_told",
        "test_boxes.test_exchanged_corners_are_put_right_and_told",
        "test_voc.test_a_box_without_area_in_the_picture_is_left_out_and_reported",
        "test_boxes.test_a_size_that_is_missing_or_zero_is_the_pictures",
        "test_boxes.test_the_picture_gives_the_frame_and_another_noted_size_is_told",
        "test_boxes.test_boxes_from_before_exif_orientation_are_turned_with_the_picture",
        "test_boxes.test_the_noted_size_of_a_picture_that_cannot_be_read_is_kept",
        "test_boxes.test_one_pair_of_quotes_is_taken_off_a_name_and_told",
        "test_coco.test_a_picture_is_found_however_it_is_named",
        "test_boxes.test_a_mark_that_is_set",
        "test_boxes.test_a_mark_of_another_value_is_refused",
        "test_coco.test_records_of_one_id_are_refused_unless_they_are_the_same",
        "test_coco.test_records_of_one_id_are_refused_unless_they_are_the_same",
        "test_coco.test_an_object_that_occurs_twice_with_its_id_is_taken_once",
        "test_coco.test_categories_of_one_name_are_one_class",
        "test_coco.test_a_root_category_that_no_object_has_is_left_out_and_told",
        "test_coco.test_a_category_without_objects_stays_a_class",
        "test_coco.test_objects_of_pictures_that_are_not_listed_are_left_out_and_told",
        "test_voc.test_an_id_that_is_listed_twice_is_taken_once_and_told",
        "test_folder.test_a_picture_outside_the_subfolders_is_left_out_and_told",
        "test_inputs.test_text_files_among_pictures_are_lists_only_if_they_list_files",
        "test_training.test_training_on_nothing_stops_before_the_first_step_and_says_why",
        "test_training.test_a_detector_is_not_trained_without_boxes",
        "test_training.test_a_part_without_labels_names_the_share_that_is_held_out",
        "test_code_files.test_queries_that_share_no_label_with_the_database_are_refused",
    ],
    "Exports of other tools": [
        "test_voc.test_classes_are_named_in_the_form_of_a_data_set",
        "test_voc.test_pictures_may_end_in_any_suffix",
        "test_voc.test_a_name_that_fits_several_pictures_is_told",
        "test_voc.test_ids_may_have_blanks_marks_and_suffixes",
        "test_voc.test_sets_without_lists_have_all_their_pictures",
        "test_voc.test_an_annotation_that_names_another_picture_is_told",
        "test_coco.test_ids_are_matched_by_value",
        "test_coco.test_an_object_without_a_box_has_that_of_its_outline",
        "test_coco.test_a_file_without_annotations_lists_pictures",
        "test_csv_table.test_tables_of_other_tools_are_read",
        "test_csv_table.test_columns_that_are_not_used_are_told_once",
        "test_csv_table.test_tables_of_other_tools_are_read",
        "test_csv_table.test_tables_of_other_tools_are_read",
        "test_csv_table.test_open_images_has_fractions_groups_and_labels_that_are_absent",
        "test_yolo.test_boxes_and_polygons_are_read",
        "test_yolo.test_a_picture_without_a_file_of_labels_has_no_objects_and_is_told",
        "test_yolo.test_a_set_that_was_moved_is_read_and_told",
        "test_yolo.test_a_wrong_line_is_an_error_that_names_it",
        "test_yolo.test_a_wrong_file_is_an_error_that_names_it",
        "test_open_dataset.test_files_and_folders_may_have_colons_in_their_names",
    ],
    "Boxes of detectors": [
        "test_detections.test_coco_results_are_read",
        "test_detections.test_boxes_of_pictures_that_are_not_there_are_left_out_and_told",
        "test_detections.test_a_name_that_fits_several_pictures_is_left_out_and_told",
        "test_detections."
        "test_a_picture_of_another_folder_is_found_by_its_name_if_it_is_the_only_one",
        "test_detections.test_coco_results_without_names_have_no_classes_and_pictures_by_number",
        "test_detections.test_a_table_needs_neither_classes_nor_scores",
        "test_detections.test_coco_results_without_names_have_no_classes_and_pictures_by_number",
        "test_detections.test_a_class_that_the_model_does_not_know_is_none_and_told",
        "test_detections.test_an_error_names_file_and_field_in_one_line",
        "test_detections.test_boxes_are_turned_cut_and_left_out_as_those_of_labels",
        "test_box_files.test_newer_boxes_renew_the_pictures_that_the_file_has_and_no_others",
        "test_indexing.test_new_pictures_have_the_boxes_of_their_own_file_or_of_the_first",
        "test_box_files.test_a_query_and_an_upload_have_what_the_detector_finds",
        "test_box_files.test_a_file_of_boxes_counts_before_the_detector",
        "test_detectors.test_graphs_of_another_kind_are_refused",
        "test_detectors.test_boxes_before_suppression_and_boxes_alone_are_refused",
        "test_detectors.test_what_cannot_be_run_is_refused",
        "test_detectors.test_values_that_mean_nothing_are_refused",
        "test_detectors.test_values_that_mean_nothing_are_refused",
        "test_detectors.test_classes_have_the_names_that_are_given_or_their_numbers",
        "test_detectors.test_a_wrong_file_beside_it_is_named_with_the_field",
        "test_box_files.test_a_damaged_or_foreign_detector_is_named_and_index_restores_it",
    ],
    "Folders and collections": [
        "test_walking.test_a_folder_that_cannot_be_read_is_told_once",
        "test_walking.test_folders_of_systems_are_left_out_with_a_line",
        "test_walking.test_pictures_and_films_that_are_not_read_are_counted_by_ending",
        "test_removals.test_pictures_of_a_folder_that_is_empty_now_are_kept",
        "test_removals.test_pictures_of_a_folder_that_is_gone_are_removed",
        "test_removals.test_nor_when_it_moves_or_is_copied",
        "test_removals.test_one_of_two_copies_stays_out_and_the_other_stays_in",
        "test_removals.test_another_picture_under_its_name_is_new",
    ],
    "Pictures": [
        "test_images.test_the_content_decides_and_not_the_ending",
        "test_images.test_heic_without_its_package_says_what_to_install",
        "test_images.test_exif_orientation_is_applied_once_to_pixels_and_size",
        "test_images.test_a_tiff_whose_zero_is_white_is_read_as_its_twin",
        "test_pieces.test_no_metadata_of_a_png_refuses_it",
        "test_images.test_metadata_that_cannot_be_read_refuses_no_jpeg",
        "test_pieces.test_an_animation_with_faulty_frames_shows_its_still_picture",
        "test_encoding.test_a_picture_whose_file_is_cut_off_is_encoded_and_told",
        "test_cut_off.test_less_than_half_a_picture_is_refused_with_the_reason",
        "test_cut_off.test_formats_that_are_read_as_a_whole_say_that_they_are_cut_off",
        "test_headers.test_a_structure_that_would_take_long_is_refused_at_once",
        "test_images.test_libtiff_writes_nothing_to_stderr",
    ],
    "Messages": [
        "test_backbones.test_weights_of_another_network_are_refused",
        "test_backbones.test_default_weights_without_internet_say_what_to_do",
        "test_cli.test_a_file_in_a_folder_that_is_not_there_is_refused_by_its_name",
        "test_cli.test_an_error_of_the_system_begins_with_the_file",
        "test_cli.test_a_checkpoint_that_is_not_there_is_named",
        "test_server.test_a_port_in_use_is_told_with_the_option",
        "test_cli.test_a_port_that_is_none_is_refused",
        "test_cli.test_of_several_processes_of_a_training_the_first_prints",
    ],
    "Searches": [
        "test_marks.test_a_box_that_cannot_be_meant_is_named_with_the_size_of_the_picture",
        "test_marks.test_a_box_that_cannot_be_meant_is_named_with_the_size_of_the_picture",
        "test_marks.test_a_box_that_cannot_be_meant_is_named_with_the_size_of_the_picture",
        "test_marks.test_a_box_that_is_partly_outside_is_cut_off_and_noted",
        "test_marks.test_what_rounding_cuts_off_is_not_noted",
        "test_assignment.test_two_cups_are_found_where_there_are_two",
        "test_assignment.test_one_cup_that_was_proposed_twice_is_one_cup",
        "test_assignment.test_an_object_without_a_region_costs_all_bits_and_has_no_box",
        "test_assignment.test_objects_that_exclude_others_are_compared_with_every_region",
        "test_assignment.test_two_cups_are_found_where_there_are_two",
        "test_request.test_what_cannot_be_searched_is_refused_before_anything_is_read",
        "test_service.test_scores_that_mean_nothing_are_null_and_no_filter",
        "test_filters.test_a_least_score_needs_scores_of_classes",
        "test_service.test_probabilities_that_mean_nothing_are_null_and_no_limit",
        "test_assignment.test_a_search_of_too_many_objects_for_the_regions_says_so",
    ],
}


def test_every_table_is_held():
    text = (ROOT / "docs/input.md").read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(HELD)


def rows_of(section):
    text = (ROOT / "docs/input.md").read_text().partition(f"\n## {section}\n")[2]
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return lines[2:]  # without the header


@pytest.mark.parametrize("section", HELD)
def test_each_row_is_held_by_a_test(section):
    assert len(rows_of(section)) == len(HELD[section])
    for held in HELD[section]:
        module, name = held.split(".")
        tree = ast.parse((ROOT / f"tests/{module}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
